//! What a CUDA device is, and what the embedded kernels take of it. Asks the driver library alone, so it answers
//! also where libtorch has no CUDA part.

use std::ffi::{CStr, c_char, c_int};

use super::driver::{Driver, gpu};
use super::images;

/// A device, in the driver's words.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceFacts {
    pub name: String,
    /// The newest CUDA that the driver knows, as 13.0.
    pub cuda: String,
    /// As 9.0.
    pub capability: String,
    pub multiprocessors: u32,
    pub memory_bytes: u64,
    pub free_bytes: u64,
    /// Bytes of shared memory that a block can have.
    pub shared_bytes: u32,
}

/// What one embedded kernel takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryFacts {
    pub name: String,
    pub registers: u32,
    /// Beside what a launch asks for.
    pub shared_bytes: u32,
    /// Stack and spilled registers of a thread.
    pub local_bytes: u32,
    pub threads_max: u32,
}

const MULTIPROCESSORS: c_int = 16;
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;
const SHARED_MEMORY_OPTIN: c_int = 97;

/// Asks about one device.
///
/// # Errors
/// In the driver's words; when there is no driver, in the loader's.
pub fn device_facts(device: usize) -> Result<DeviceFacts, String> {
    const NAME_LEN: usize = 256;
    let driver = Driver::load()?;
    let mut number = 0;
    let (mut version, mut memory, mut free, mut total) = (0, 0usize, 0usize, 0usize);
    let mut name: [c_char; NAME_LEN] = [0; NAME_LEN];
    // SAFETY: each call writes the one value, or at most the bytes, whose address it is given.
    unsafe {
        driver.check("cuDriverGetVersion", (driver.driver_version)(&mut version))?;
        driver.check("cuDeviceGet", (driver.device_get)(&mut number, device as c_int))?;
        let status = (driver.device_name)(name.as_mut_ptr(), NAME_LEN as c_int, number);
        driver.check("cuDeviceGetName", status)?;
        driver.check("cuDeviceTotalMem", (driver.total_memory)(&mut memory, number))?;
    }
    let attribute = |which: c_int| -> Result<u32, String> {
        let mut value = 0;
        // SAFETY: as above.
        let status = unsafe { (driver.device_attribute)(&mut value, which, number) };
        driver.check("cuDeviceGetAttribute", status)?;
        Ok(u32::try_from(value).unwrap_or(0))
    };
    driver.enter(number)?;
    // SAFETY: as above; the device's context is current.
    driver.check("cuMemGetInfo", unsafe { (driver.memory_info)(&mut free, &mut total) })?;
    // SAFETY: the driver ends the name with a zero byte within the array, whose last byte was zero before.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    Ok(DeviceFacts {
        name: name.to_string_lossy().into_owned(),
        cuda: format!("{}.{}", version / 1000, version % 1000 / 10),
        capability: format!("{}.{}", attribute(CAPABILITY_MAJOR)?, attribute(CAPABILITY_MINOR)?),
        multiprocessors: attribute(MULTIPROCESSORS)?,
        memory_bytes: memory as u64,
        free_bytes: free as u64,
        shared_bytes: attribute(SHARED_MEMORY_OPTIN)?,
    })
}

/// Bytes of the device's memory that are taken, by everybody together.
///
/// # Errors
/// As [`device_facts`].
pub fn memory_taken(device: usize) -> Result<u64, String> {
    device_facts(device).map(|facts| facts.memory_bytes.saturating_sub(facts.free_bytes))
}

/// Loads each embedded kernel on the device and says what it takes.
///
/// # Errors
/// The first kernel that does not load, in the driver's words.
pub fn entry_facts(device: usize) -> Result<Vec<EntryFacts>, String> {
    let gpu = gpu(device)?;
    entry_names().map(|name| gpu.entry(name)).collect()
}

/// Names of the embedded kernels; none in a build without them.
pub fn entry_names() -> impl Iterator<Item = &'static str> {
    let text = std::str::from_utf8(images::PTX).unwrap_or_default();
    let entries = text.lines().filter_map(|line| line.strip_prefix(".visible .entry "));
    entries.filter_map(|rest| rest.split('(').next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_kernels_are_known_by_name() {
        let names: Vec<_> = entry_names().collect();
        assert!(names.len() > 40 || images::PTX.is_empty(), "{names:?}");
        assert!(images::PTX.is_empty() || names.contains(&"rms_norm_bf16"), "{names:?}");
    }
}
