//! The definitions of graders.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

/// A grader. Texts of it are templates over `item` and `sample`.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Grader {
    StringCheck(StringCheckGrader),
    TextSimilarity(TextSimilarityGrader),
    ScoreModel(ScoreModelGrader),
    LabelModel(LabelModelGrader),
    Python(PythonGrader),
    Multi(MultiGrader),
}

/// A testing criterion of an evaluation: any grader but `multi`.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum TestingCriterion {
    StringCheck(StringCheckGrader),
    /// Needs `pass_threshold`.
    TextSimilarity(TextSimilarityGrader),
    ScoreModel(ScoreModelGrader),
    LabelModel(LabelModelGrader),
    Python(PythonGrader),
}

/// 1 where the comparison holds, 0 where not.
#[derive(Serialize, ToSchema)]
pub(crate) struct StringCheckGrader {
    /// Filled in where it is missing.
    #[schema(max_length = 256)]
    pub name: Option<String>,
    pub input: String,
    pub reference: String,
    /// `eq`, `ne`, `like`, `ilike` or `neq`.
    pub operation: String,
}

/// 0 to 1, by how alike two texts are.
#[derive(Serialize, ToSchema)]
pub(crate) struct TextSimilarityGrader {
    /// Filled in where it is missing.
    #[schema(max_length = 256)]
    pub name: Option<String>,
    pub input: String,
    pub reference: String,
    /// `fuzzy_match`, `bleu`, `gleu`, `meteor`, `rouge_1`, `rouge_2`, `rouge_3`, `rouge_4`, `rouge_5` or `rouge_l`.
    pub evaluation_metric: String,
    pub pass_threshold: Option<f64>,
}

/// A model answers with a number.
#[derive(Serialize, ToSchema)]
pub(crate) struct ScoreModelGrader {
    /// Filled in where it is missing.
    #[schema(max_length = 256)]
    pub name: Option<String>,
    /// A model of this server.
    pub model: String,
    #[schema(min_items = 1, max_items = 64)]
    pub input: Vec<TemplateMessage>,
    /// The lowest and the highest score; 0 to 1 by default.
    #[schema(min_items = 2, max_items = 2)]
    pub range: Option<Vec<f64>>,
    pub sampling_params: Option<JudgeSampling>,
    pub pass_threshold: Option<f64>,
}

/// A model answers with one of some labels.
#[derive(Serialize, ToSchema)]
pub(crate) struct LabelModelGrader {
    /// Filled in where it is missing.
    #[schema(max_length = 256)]
    pub name: Option<String>,
    /// A model of this server.
    pub model: String,
    #[schema(min_items = 1, max_items = 64)]
    pub input: Vec<TemplateMessage>,
    #[schema(min_items = 1, max_items = 256)]
    pub labels: Vec<String>,
    /// Some of the labels.
    #[schema(max_items = 256)]
    pub passing_labels: Vec<String>,
    pub sampling_params: Option<JudgeSampling>,
}

/// A program with a function `grade(sample, item)`.
#[derive(Serialize, ToSchema)]
pub(crate) struct PythonGrader {
    /// Filled in where it is missing.
    #[schema(max_length = 256)]
    pub name: Option<String>,
    #[schema(max_length = 262144)]
    pub source: String,
    #[schema(max_length = 256)]
    pub image_tag: Option<String>,
    pub pass_threshold: Option<f64>,
}

/// A formula over the scores of others.
#[derive(Serialize, ToSchema)]
pub(crate) struct MultiGrader {
    /// Filled in where it is missing.
    #[schema(max_length = 256)]
    pub name: Option<String>,
    pub graders: GradersOfMulti,
    /// `+ - * / ^`, parentheses, numbers, `min`, `max`, `abs`, `floor`, `ceil`, `exp`, `sqrt`, `log`.
    pub calculate_output: String,
}

/// By the names that the formula knows them by; or one, or several, by their own names.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum GradersOfMulti {
    One(TestingCriterion),
    ByKey(BTreeMap<String, TestingCriterion>),
    Several(Vec<TestingCriterion>),
}

/// A message whose texts are templates.
#[derive(Serialize, ToSchema)]
pub(crate) struct TemplateMessage {
    /// Always `message`.
    pub r#type: Option<String>,
    /// `user`, `assistant`, `system` or `developer`.
    pub role: String,
    pub content: TemplateContent,
}

/// A text, a block, or several of them.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum TemplateContent {
    Text(String),
    Block(TemplateBlock),
    Several(Vec<TemplatePart>),
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum TemplatePart {
    Text(String),
    Block(TemplateBlock),
}

/// Text only: images and audio are refused.
#[derive(Serialize, ToSchema)]
pub(crate) struct TemplateBlock {
    /// `input_text`, `output_text` or `text`.
    pub r#type: String,
    pub text: String,
}

/// How a judge is asked.
#[derive(Serialize, ToSchema)]
pub(crate) struct JudgeSampling {
    pub seed: Option<i64>,
    #[schema(minimum = 0, maximum = 1)]
    pub top_p: Option<f64>,
    #[schema(minimum = 0, maximum = 2)]
    pub temperature: Option<f64>,
    #[schema(minimum = 1)]
    pub max_completions_tokens: Option<i64>,
    /// `none`, `minimal`, `low`, `medium`, `high`, `xhigh` or `max`.
    pub reasoning_effort: Option<String>,
}
