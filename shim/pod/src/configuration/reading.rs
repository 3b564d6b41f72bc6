//! The operator's files, in the order in which they count.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::ConfigurationError;

/// Largest file that is read: all keys fit in one kilobyte, the rest is for comments.
const FILE_LEN_MAX: u64 = 64 << 10;
/// Most drop-ins.
const DROP_INS_MAX: usize = 64;
/// Folder of the drop-ins, beside the main file.
const DROP_IN_FOLDER: &str = "config.d";

/// One file with its text.
#[derive(Debug, Clone)]
pub(super) struct Text {
    /// Where it is.
    pub path: PathBuf,
    /// What it says.
    pub text: String,
}

/// The main file, then the drop-ins by name. Without `required`, a main file that is not there says nothing.
pub(super) fn read_all(main: &Path, required: bool) -> Result<Vec<Text>, ConfigurationError> {
    let mut texts = Vec::new();
    match read(main) {
        Ok(text) => texts.push(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !required => {}
        Err(error) => return Err(ConfigurationError::unreadable(main, &error)),
    }
    for path in drop_ins(&main.with_file_name(DROP_IN_FOLDER))? {
        texts.push(read(&path).map_err(|error| ConfigurationError::unreadable(&path, &error))?);
    }
    Ok(texts)
}

fn drop_ins(folder: &Path) -> Result<Vec<PathBuf>, ConfigurationError> {
    let unreadable = |error: io::Error| ConfigurationError::unreadable(folder, &error);
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
        if paths.len() > DROP_INS_MAX {
            return Err(unreadable(io::Error::other(format!("it holds more than {DROP_INS_MAX} files"))));
        }
    }
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> io::Result<Text> {
    let mut text = String::new();
    File::open(path)?.take(FILE_LEN_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_LEN_MAX {
        return Err(io::Error::other(format!("it is larger than {FILE_LEN_MAX} bytes")));
    }
    Ok(Text { path: path.to_owned(), text })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(texts: &[Text]) -> Vec<String> {
        texts.iter().map(|text| text.path.file_name().expect("a file").to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn drop_ins_come_after_the_main_file_by_name_and_nothing_else_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let main = folder.path().join("config.toml");
        fs::create_dir(folder.path().join("config.d")).expect("made");
        for name in ["config.toml", "config.d/20-b.toml", "config.d/10-a.toml", "config.d/30.toml.bak", "other.toml"] {
            fs::write(folder.path().join(name), "").expect("written");
        }
        assert_eq!(names(&read_all(&main, true).expect("read")), ["config.toml", "10-a.toml", "20-b.toml"]);
        fs::remove_file(&main).expect("removed");
        assert_eq!(names(&read_all(&main, false).expect("read")), ["10-a.toml", "20-b.toml"]);
    }

    #[test]
    fn nothing_is_there_by_default_and_that_is_fine() {
        assert!(read_all(Path::new("/nowhere/config.toml"), false).expect("read").is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_reason() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        fs::write(at("large.toml"), " ".repeat(FILE_LEN_MAX as usize + 1)).expect("written");
        fs::write(at("noise.toml"), [0xff, 0xfe]).expect("written");
        fs::create_dir(at("folder.toml")).expect("made");
        for (name, words) in [
            ("missing.toml", "No such file"),
            ("large.toml", "larger than"),
            ("noise.toml", "UTF-8"),
            ("folder.toml", "directory"),
        ] {
            let message = read_all(&at(name), true).expect_err(name).to_string();
            assert!(message.contains(words) && message.contains(name), "{message}");
        }
    }
}
