//! What to do about a fault, by its code: the half of a message that the code alone can give.

use dataset::code;

/// A sentence of advice.
pub(crate) fn remedy(code: &str) -> &'static str {
    of_file(code).or_else(|| of_warning(code)).or_else(|| of_request(code)).unwrap_or(
        "Read the message; it names the field or the line. Then correct it and validate again.",
    )
}

fn of_file(code: &str) -> Option<&'static str> {
    Some(match code {
        code::EMPTY_FILE => "Upload a file with one JSON object per line.",
        code::INVALID_N_EXAMPLES => "Add examples: a training file needs at least 10.",
        code::UNEXPECTED_FORMAT => {
            "Use rows of the form that the method reads ('messages' for supervised; 'input', \
             'preferred_output' and 'non_preferred_output' for dpo), or choose the other method."
        }
        code::UNREADABLE_FILE => "Upload the file again.",
        code::NO_TARGET_TOKENS => {
            "Give at least one assistant message the weight 1, within the first 'max_seq_len' tokens."
        }
        code::LINE_TOO_LONG => "Split the example, or raise server.max_line_bytes.",
        code::INVALID_UTF8 => "Save the file as UTF-8.",
        code::INVALID_JSON => {
            "Write one complete JSON object on each line, without line breaks in it."
        }
        code::NESTING_TOO_DEEP | code::TOO_MANY_VALUES => "Make the row simpler.",
        code::DUPLICATE_KEY => "Keep one of the two keys.",
        code::NUL_CHARACTER => "Remove the character U+0000.",
        code::DATA_TYPE => "Give the field the type that the message names.",
        code::MISSING_KEY | code::MESSAGE_MISSING_KEY => "Add the missing key.",
        code::MISSING_MESSAGES_LIST => "Give the row a list 'messages' with at least one message.",
        code::UNRECOGNIZED_KEY | code::MESSAGE_UNRECOGNIZED_KEY => {
            "Remove the key, or correct its name."
        }
        code::INVALID_TOOL => {
            "Write each tool as {\"type\": \"function\", \"function\": {\"name\": …}}."
        }
        code::UNRECOGNIZED_ROLE => {
            "Use one of the roles system, developer, user, assistant, tool, function."
        }
        code::MISSING_CONTENT => "Give the message a content, or the assistant a tool call.",
        code::UNSUPPORTED_CONTENT => "Write the content as text.",
        code::INVALID_WEIGHT => "Use the weight 0 or 1.",
        code::WEIGHT_ON_NON_ASSISTANT => "Give a weight to assistant messages only.",
        code::INVALID_TOOL_CALL => {
            "Write each call with its id, type, function name and arguments."
        }
        code::TOOL_MESSAGE_WITHOUT_CALL => {
            "Put the tool's message after the call with the same id."
        }
        code::EXAMPLE_MISSING_ASSISTANT_MESSAGE => {
            "Add the assistant's answer: it is what is learned."
        }
        code::SPECIAL_TOKEN => {
            "Remove the control token from the text; the chat template adds its own."
        }
        code::CHAT_TEMPLATE => "Order the roles as the model's chat template demands.",
        code::TOKENIZER => "Remove the text that the tokenizer cannot read.",
        _ => return None,
    })
}

fn of_warning(code: &str) -> Option<&'static str> {
    Some(match code {
        "truncated" => "Shorten these examples, or raise 'finetuned.max_seq_len'.",
        "targets_cut" => {
            "Shorten what stands before the answers, or raise 'finetuned.max_seq_len'."
        }
        "without_targets" => "Give an assistant message the weight 1, or remove the example.",
        "equal_answers" => "Make the two answers differ, or remove the example.",
        "one_label" => "Add examples with the other label.",
        "old_keys" => "Rename the keys to 'preferred_output' and 'non_preferred_output'.",
        "integration_without_effect" => "Run `openai wandb sync` once the job has succeeded.",
        _ => return None,
    })
}

fn of_request(code: &str) -> Option<&'static str> {
    Some(match code {
        "missing_required_parameter" => "Add the parameter.",
        "unknown_parameter" => "Remove the parameter, or correct its name.",
        "invalid_type" => "Give the parameter the type that the message names.",
        "invalid_value" => "Choose another value; the message says which are possible.",
        "string_above_max_length" | "array_above_max_length" | "object_above_max_properties" => {
            "Shorten it."
        }
        "integer_below_min_value"
        | "integer_above_max_value"
        | "decimal_below_min_value"
        | "decimal_above_max_value" => "Choose a value within the range.",
        "model_not_available" => {
            "Name a base model of GET /v1/models, or import one with `finetuned models import`."
        }
        "file_not_found" => "Upload the file with the purpose 'fine-tune' and use its id.",
        "invalid_hyperparameters" => "Lower 'finetuned.virtual_tokens.count'.",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_that_is_new_still_gets_advice() {
        assert!(remedy("brand_new").contains("message"));
        assert!(remedy(code::SPECIAL_TOKEN).contains("control token"));
    }
}
