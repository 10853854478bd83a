//! placeholder
use super::ImportError;
use std::path::Path;
pub fn import(source: &Path, _folder: &Path) -> Result<(&'static str, u64), ImportError> {
    Err(ImportError::unsupported(source, "folder"))
}
