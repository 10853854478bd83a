//! What to do about a fault, by its code: the half of a message that the code alone can give.

/// A sentence of advice.
pub(crate) fn remedy(code: &str) -> &'static str {
    dataset::remedy(code).or_else(|| of_request(code)).unwrap_or(
        "Read the message; it names the field or the line. Then correct it and validate again.",
    )
}

fn of_request(code: &str) -> Option<&'static str> {
    Some(match code {
        "integration_without_effect" => "Run `openai wandb sync` once the job has succeeded.",
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
    use dataset::code;

    #[test]
    fn a_code_that_is_new_still_gets_advice() {
        assert!(remedy("brand_new").contains("message"));
        assert!(remedy(code::SPECIAL_TOKEN).contains("control token"));
    }
}
