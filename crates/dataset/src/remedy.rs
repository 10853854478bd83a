//! What to do about a problem or a remark, by its code: the half of a message that the code alone can give.

use crate::problem::code;

/// A sentence of advice; none for other codes.
pub fn remedy(code: &str) -> Option<&'static str> {
    of_problem(code).or_else(|| of_tokens(code)).or_else(|| of_quality(code))
}

fn of_problem(code: &str) -> Option<&'static str> {
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
            "Write one complete JSON object on each line, or all of them as one list."
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

fn of_tokens(code: &str) -> Option<&'static str> {
    Some(match code {
        "truncated" => "Shorten these examples, or raise 'finetuned.max_seq_len'.",
        "targets_cut" => {
            "Shorten what stands before the answers, or raise 'finetuned.max_seq_len'."
        }
        "without_targets" => "Give an assistant message the weight 1, or remove the example.",
        "equal_answers" => "Make the two answers differ, or remove the example.",
        "one_label" => "Add examples with the other label.",
        "old_keys" => "Rename the keys to 'preferred_output' and 'non_preferred_output'.",
        "end_cut" => "Shorten these examples, or raise 'finetuned.max_seq_len'.",
        _ => return None,
    })
}

fn of_quality(code: &str) -> Option<&'static str> {
    Some(match code {
        "contradiction" => "Decide for one answer and remove the others.",
        "exact_duplicate" => {
            "Remove the copies; to weight a row, repeat it knowingly or raise 'n_epochs'."
        }
        "near_duplicate" => "Keep one of rows that are nearly the same, or make them differ.",
        "leaked" => {
            "Remove these rows from one of the files: a loss on rows that were learned says nothing."
        }
        "empty_output" => "Write the answer that shall be learned, or remove the row.",
        "refusal" => {
            "Remove the row, unless the model shall refuse this: refusals are learned quickly."
        }
        "cut_off" => "Complete the output, or remove the row: where to stop is learned too.",
        "repetition" => "Write the output anew, or remove the row: loops are learned.",
        "few_examples" => {
            "Add rows, or train with few epochs and compare with the base model and its prompt."
        }
        "label_imbalance" => "Add rows with the rarer labels, or leave out some of the commonest.",
        "label_spelling" => "Write every label in one way.",
        "rare_label" => "Correct the label, or add rows with it.",
        "mixed_instructions" => {
            "Give all rows a system prompt or none, as requests will have it later."
        }
        "missing_user_message" => "Add the question, as requests will have it later.",
        "not_json" => "Write all outputs as JSON.",
        "other_keys" => "Give all outputs the same keys, with null where there is no value.",
        "other_language" => "Check the rows; keep them if several languages are meant.",
        "pii_email" | "pii_phone" | "pii_credit_card" | "pii_iban" | "pii_ip_address"
        | "pii_ssn" => "Replace the data with placeholders: a model may say what it has learned.",
        "pii_secret" => "Remove the secret and revoke it: a model may say what it has learned.",
        "low_diversity" => "Add inputs that are worded otherwise, as real ones are.",
        "not_compared" => "Remove copies before the upload, or check the file in parts.",
        _ => return None,
    })
}
