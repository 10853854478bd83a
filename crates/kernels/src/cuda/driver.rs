//! Launches through NVIDIA's driver library, which every machine with a GPU has: no CUDA toolkit is needed to build
//! or to run. Kernels go to the legacy default stream, where libtorch's own work is, so they need no waiting.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr::null_mut;
use std::sync::{Mutex, PoisonError};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::inspect::EntryFacts;
use super::plan::Launch;
use super::{images, roster, words};

type Status = c_int;
type Handle = *mut c_void;

/// Functions of libcuda by the driver's own names and signatures.
pub(super) struct Driver {
    error_name: unsafe extern "C" fn(Status, *mut *const c_char) -> Status,
    pub driver_version: unsafe extern "C" fn(*mut c_int) -> Status,
    pub device_get: unsafe extern "C" fn(*mut c_int, c_int) -> Status,
    pub device_name: unsafe extern "C" fn(*mut c_char, c_int, c_int) -> Status,
    pub device_attribute: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> Status,
    pub total_memory: unsafe extern "C" fn(*mut usize, c_int) -> Status,
    /// Of the current context's device: free, and all.
    pub memory_info: unsafe extern "C" fn(*mut usize, *mut usize) -> Status,
    primary_context: unsafe extern "C" fn(*mut Handle, c_int) -> Status,
    set_current: unsafe extern "C" fn(Handle) -> Status,
    load_module: unsafe extern "C" fn(*mut Handle, *const c_void) -> Status,
    get_function: unsafe extern "C" fn(*mut Handle, Handle, *const c_char) -> Status,
    get_attribute: unsafe extern "C" fn(*mut c_int, c_int, Handle) -> Status,
    set_attribute: unsafe extern "C" fn(Handle, c_int, c_int) -> Status,
    launch: LaunchKernel,
}

type LaunchKernel = unsafe extern "C" fn(
    Handle,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    Handle,
    *mut *mut c_void,
    *mut *mut c_void,
) -> Status;

const NO_BINARY_FOR_GPU: Status = 209;
const SHARED_MEMORY_OPTIN: c_int = 97;
const FUNCTION_THREADS_MAX: c_int = 0;
const FUNCTION_STATIC_SHARED: c_int = 1;
const FUNCTION_LOCAL: c_int = 3;
const FUNCTION_REGISTERS: c_int = 4;
const FUNCTION_SHARED_SIZE: c_int = 8;
/// Dynamic shared memory that a kernel may have without asking.
const SHARED_FREE: u32 = 48 * 1024;

impl Driver {
    pub fn load() -> Result<Self, String> {
        // SAFETY: the driver's library only registers itself; it is never unloaded (forgotten below).
        let library = unsafe { Library::open(Some("libcuda.so.1"), RTLD_NOW | RTLD_LOCAL) }
            .map_err(|error| format!("NVIDIA's driver does not load: {}", words(&error)))?;
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: the field's type is the driver API's signature of that name.
                *unsafe { library.get($name) }
                    .map_err(|error| format!("NVIDIA's driver is too old: {}", words(&error)))?
            };
        }
        // SAFETY: as above.
        let init: unsafe extern "C" fn(c_uint) -> Status = symbol!(b"cuInit\0");
        let driver = Self {
            error_name: symbol!(b"cuGetErrorName\0"),
            driver_version: symbol!(b"cuDriverGetVersion\0"),
            device_get: symbol!(b"cuDeviceGet\0"),
            device_name: symbol!(b"cuDeviceGetName\0"),
            device_attribute: symbol!(b"cuDeviceGetAttribute\0"),
            total_memory: symbol!(b"cuDeviceTotalMem_v2\0"),
            memory_info: symbol!(b"cuMemGetInfo_v2\0"),
            primary_context: symbol!(b"cuDevicePrimaryCtxRetain\0"),
            set_current: symbol!(b"cuCtxSetCurrent\0"),
            load_module: symbol!(b"cuModuleLoadData\0"),
            get_function: symbol!(b"cuModuleGetFunction\0"),
            get_attribute: symbol!(b"cuFuncGetAttribute\0"),
            set_attribute: symbol!(b"cuFuncSetAttribute\0"),
            launch: symbol!(b"cuLaunchKernel\0"),
        };
        std::mem::forget(library);
        // SAFETY: may be called any number of times, with zero.
        driver.check("cuInit", unsafe { init(0) })?;
        Ok(driver)
    }

    /// Makes the device's primary context current, the one that libtorch uses. It is retained for the life of the
    /// process.
    pub fn enter(&self, number: c_int) -> Result<Handle, String> {
        let mut context = null_mut();
        // SAFETY: writes the one value whose address it is given.
        let status = unsafe { (self.primary_context)(&mut context, number) };
        self.check("cuDevicePrimaryCtxRetain", status)?;
        // SAFETY: a context that was just retained.
        self.check("cuCtxSetCurrent", unsafe { (self.set_current)(context) })?;
        Ok(context)
    }

    pub fn check(&self, call: &str, status: Status) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        let mut name: *const c_char = std::ptr::null();
        // SAFETY: writes the address of a constant string, or null for an unknown code.
        let known = unsafe { (self.error_name)(status, &mut name) } == 0 && !name.is_null();
        let name = if known {
            // SAFETY: a constant string of the driver, as just checked.
            unsafe { CStr::from_ptr(name) }.to_string_lossy()
        } else {
            "?".into()
        };
        Err(format!("CUDA driver: {call} failed: {name} ({status})"))
    }
}

/// A device with the project's kernels loaded.
pub(crate) struct Gpu {
    driver: Driver,
    /// Which of the embedded images was taken.
    pub image: &'static str,
    context: Handle,
    module: Handle,
    /// Bytes of shared memory that a block can have.
    shared_max: u32,
    functions: Mutex<HashMap<String, Function>>,
}

#[derive(Clone, Copy)]
struct Function(Handle);

// SAFETY: handles of the driver, which may be used from any thread.
unsafe impl Send for Gpu {}
// SAFETY: as above; the one changing part is behind a lock.
unsafe impl Sync for Gpu {}
// SAFETY: as above.
unsafe impl Send for Function {}

/// The device's kernels, loaded at the first call. A failure is kept too: it would be the same again.
pub(crate) fn gpu(device: usize) -> Result<&'static Gpu, String> {
    static OPENED: Mutex<Vec<(usize, Result<&'static Gpu, String>)>> = Mutex::new(Vec::new());
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, gpu)) = opened.iter().find(|(number, _)| *number == device) {
        return gpu.clone();
    }
    let gpu = Gpu::open(device).map(|gpu| &*Box::leak(Box::new(gpu)));
    opened.push((device, gpu.clone()));
    gpu
}

impl Gpu {
    fn open(device: usize) -> Result<Self, String> {
        if images::SM_90.is_empty() || images::PTX.is_empty() {
            return Err(
                "this build holds no CUDA kernels (`cargo xtask setup`, then build again)".into()
            );
        }
        let driver = Driver::load()?;
        let (mut number, mut shared_max) = (0, 0);
        // SAFETY: each call writes the one value whose address it is given.
        unsafe {
            driver.check("cuDeviceGet", (driver.device_get)(&mut number, device as c_int))?;
            let status = (driver.device_attribute)(&mut shared_max, SHARED_MEMORY_OPTIN, number);
            driver.check("cuDeviceGetAttribute", status)?;
        }
        let context = driver.enter(number)?;
        let (module, image) = load_module(&driver)?;
        let shared_max = u32::try_from(shared_max).unwrap_or(0);
        let functions = Mutex::default();
        Ok(Self { driver, image, context, module, shared_max, functions })
    }

    /// Whether the device has the memory that a launch asks for.
    pub fn fits(&self, launch: &Launch) -> bool {
        launch.shared <= self.shared_max
    }

    /// Queues a launch behind everything that libtorch has queued.
    ///
    /// # Errors
    /// With the driver's words. An error of an earlier kernel may show here.
    pub fn launch(&self, launch: &Launch) -> Result<(), String> {
        if launch.grid.0 == 0 || launch.grid.1 == 0 {
            return Ok(());
        }
        // SAFETY: the context lives as long as the process.
        let status = unsafe { (self.driver.set_current)(self.context) };
        self.driver.check("cuCtxSetCurrent", status)?;
        let function = self.function(&launch.kernel, launch.shared)?;
        roster::note(&launch.kernel);
        let mut arguments = [launch.parameters.as_ptr().cast_mut().cast::<c_void>()];
        // SAFETY: the plan made the one argument with the layout of the kernel's structure (the tests compare the
        // sizes and run the same bytes); it is copied before the call returns. The addresses in it are those of
        // tensors that the caller holds, and libtorch frees memory in the order of the same stream.
        let status = unsafe {
            (self.driver.launch)(
                function.0,
                launch.grid.0,
                launch.grid.1,
                1,
                launch.threads,
                1,
                1,
                launch.shared,
                null_mut(),
                arguments.as_mut_ptr(),
                null_mut(),
            )
        };
        self.driver.check(&format!("launch of {}", launch.kernel), status)
    }

    fn function(&self, kernel: &str, shared: u32) -> Result<Function, String> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(kernel) {
            return Ok(*function);
        }
        let function = self.find(kernel)?;
        if shared > SHARED_FREE {
            // SAFETY: a live function; each kernel is always launched with the same amount.
            let status = unsafe {
                (self.driver.set_attribute)(function.0, FUNCTION_SHARED_SIZE, shared as c_int)
            };
            self.driver.check("cuFuncSetAttribute", status)?;
        }
        functions.insert(kernel.to_owned(), function);
        Ok(function)
    }

    fn find(&self, kernel: &str) -> Result<Function, String> {
        let name = CString::new(kernel).expect("names of kernels have no zero bytes");
        let mut function = null_mut();
        // SAFETY: a live module and a string that ends.
        let status =
            unsafe { (self.driver.get_function)(&mut function, self.module, name.as_ptr()) };
        self.driver.check(&format!("cuModuleGetFunction of {kernel}"), status)?;
        Ok(Function(function))
    }

    /// Loads a kernel and says what it takes.
    pub fn entry(&self, kernel: &str) -> Result<EntryFacts, String> {
        // SAFETY: the context lives as long as the process.
        let status = unsafe { (self.driver.set_current)(self.context) };
        self.driver.check("cuCtxSetCurrent", status)?;
        let function = self.find(kernel)?;
        let attribute = |which: c_int| -> Result<u32, String> {
            let mut value = 0;
            // SAFETY: writes the one value; a live function.
            let status = unsafe { (self.driver.get_attribute)(&mut value, which, function.0) };
            self.driver.check("cuFuncGetAttribute", status)?;
            Ok(u32::try_from(value).unwrap_or(0))
        };
        Ok(EntryFacts {
            name: kernel.to_owned(),
            registers: attribute(FUNCTION_REGISTERS)?,
            shared_bytes: attribute(FUNCTION_STATIC_SHARED)?,
            local_bytes: attribute(FUNCTION_LOCAL)?,
            threads_max: attribute(FUNCTION_THREADS_MAX)?,
        })
    }
}

/// The machine code for Hopper, or the text that the driver compiles for every other device.
fn load_module(driver: &Driver) -> Result<(Handle, &'static str), String> {
    let mut module = null_mut();
    // SAFETY: a whole image in memory; the current context was set.
    let status = unsafe { (driver.load_module)(&mut module, images::SM_90.as_ptr().cast()) };
    if status != NO_BINARY_FOR_GPU {
        driver.check("cuModuleLoadData of the sm_90 image", status)?;
        return Ok((module, "sm_90"));
    }
    let text = CString::new(images::PTX).map_err(|_| "the embedded PTX holds a zero byte")?;
    // SAFETY: text that ends with a zero byte.
    let status = unsafe { (driver.load_module)(&mut module, text.as_ptr().cast()) };
    driver.check("cuModuleLoadData of the compute_80 text", status)?;
    Ok((module, "compute_80"))
}
