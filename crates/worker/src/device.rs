//! Which devices this worker drives.
//!
//! A look at device files, not at a driver: the worker links no CUDA. The engine says at its start
//! whether it can really use its device.

use std::path::Path;

use crate::Error;

/// The devices meant by the configuration; `auto` is every CUDA device, else the CPU.
pub fn resolve(configured: &[String]) -> Result<Vec<String>, Error> {
    if configured.is_empty() || configured == ["auto"] {
        return Ok(detect(Path::new("/dev")));
    }
    for (i, device) in configured.iter().enumerate() {
        let known = device == "cpu"
            || device.strip_prefix("cuda:").is_some_and(|index| index.parse::<u16>().is_ok());
        if !known {
            return Err(Error::Device(device.clone()));
        }
        if configured[..i].contains(device) {
            return Err(Error::DeviceTwice(device.clone()));
        }
    }
    Ok(configured.to_vec())
}

fn detect(dev: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dev).into_iter().flatten().flatten();
    let count = entries
        .filter(|entry| {
            let name = entry.file_name();
            let index = name.to_str().and_then(|name| name.strip_prefix("nvidia"));
            index.is_some_and(|i| !i.is_empty() && i.bytes().all(|b| b.is_ascii_digit()))
        })
        .count();
    match count {
        0 => vec!["cpu".to_owned()],
        // CUDA numbers the devices that a process sees from 0, whatever the files are called.
        _ => (0..count).map(|index| format!("cuda:{index}")).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_card_is_a_device_and_control_files_are_none() {
        let dev = tempfile::tempdir().unwrap();
        assert_eq!(detect(dev.path()), ["cpu"]);
        for name in ["nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm", "nvidia"] {
            std::fs::write(dev.path().join(name), "").unwrap();
        }
        assert_eq!(detect(dev.path()), ["cuda:0", "cuda:1"]);
    }

    #[test]
    fn a_device_that_is_none_or_doubled_is_refused_by_name() {
        let error = resolve(&["gpu0".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("gpu0"), "{error}");
        assert!(resolve(&["cpu".to_owned(), "cpu".to_owned()]).is_err());
        assert_eq!(resolve(&["cuda:1".to_owned()]).unwrap(), ["cuda:1"]);
    }
}
