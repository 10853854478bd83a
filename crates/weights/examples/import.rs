//! Imports a model folder: `import SOURCE OUT`.
use std::path::Path;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let start = std::time::Instant::now();
    match weights::import(Path::new(&arguments[1]), Path::new(&arguments[2])) {
        Ok(imported) => println!("{imported:?} in {:?}", start.elapsed()),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    }
}
