// The forward pass of libtorch's flash attention over packed documents: tch leaves out this operation, whose backward
// pass it has. Compiled against the headers that torch-sys is; runs where libtorch's CUDA part is loaded.

#include <ATen/ops/_flash_attention_forward.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <optional>

// Causal attention of heads [T, heads, head_dim] inside documents that begin and end at `bounds`, the longest of
// which has `longest` queries, and whose keys begin and end at `key_bounds`; the last query sees the last key. A
// query sees `behind` keys before its own; all when negative. Gives new tensors, the output and the log-sums
// [heads, T], and no text; or the text of what went wrong, to be freed, and no tensors.
extern "C" char *finetuned_flash_attention(const at::Tensor *query, const at::Tensor *key,
                                           const at::Tensor *value, const at::Tensor *bounds,
                                           const at::Tensor *key_bounds, int64_t longest,
                                           int64_t longest_keys, double scale, int64_t behind,
                                           at::Tensor **out, at::Tensor **log_sums) noexcept {
  try {
    std::optional<int64_t> left;
    if (behind >= 0) {
      left = behind;
    }
    auto results = at::_flash_attention_forward(
        *query, *key, *value, *bounds, *key_bounds, longest, longest_keys, /*dropout_p=*/0.0,
        /*is_causal=*/true, /*return_debug_mask=*/false, scale, left, std::nullopt);
    *log_sums = new at::Tensor(std::get<1>(results));
    *out = new at::Tensor(std::get<0>(results));
    return nullptr;
  } catch (const std::exception &error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("libtorch failed without a word");
  }
}

extern "C" void finetuned_free_text(char *text) noexcept { free(text); }
