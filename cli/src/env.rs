//! `kata-rs env`: what holds on this host, and who says so.

use clap::Args;
use pod::{
    Configuration, Installation,
    configuration::{CONFIGURATION_FILE, Key},
};
use serde::Serialize;

/// Flags of `kata-rs env`.
#[derive(Args, Debug)]
pub struct Flags {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Everything that holds.
#[derive(Debug, Serialize)]
struct Environment {
    version: &'static str,
    installation: String,
    /// The configuration's files in the order in which they count.
    files: Vec<String>,
    settings: Vec<Line>,
}

/// One key of the configuration.
#[derive(Debug, Serialize)]
struct Line {
    key: &'static str,
    /// As it would be written in a file.
    value: String,
    unit: &'static str,
    source: String,
}

/// Prints it; 0 unless the configuration or the installation is broken.
pub fn main(flags: &Flags) -> i32 {
    let environment = match environment() {
        Ok(environment) => environment,
        Err(sentence) => {
            eprintln!("kata-rs: {sentence}");
            return 1;
        }
    };
    if flags.json {
        println!("{}", serde_json::to_string_pretty(&environment).expect("plain data"));
    } else {
        print!("{}", text(&environment));
    }
    0
}

fn environment() -> Result<Environment, String> {
    let configuration = Configuration::load().map_err(|error| error.to_string())?;
    let installation = Installation::find().map_err(|error| error.to_string())?;
    Ok(Environment {
        version: env!("CARGO_PKG_VERSION"),
        installation: installation.prefix.display().to_string(),
        files: configuration.files.iter().map(|path| path.display().to_string()).collect(),
        settings: Key::ALL.into_iter().map(|key| line(key, &configuration)).collect(),
    })
}

fn line(key: Key, configuration: &Configuration) -> Line {
    let setting = configuration.shown(key);
    Line { key: key.name(), value: setting.value, unit: key.unit(), source: setting.source.to_string() }
}

fn text(environment: &Environment) -> String {
    let files = match environment.files.as_slice() {
        [] => format!("none ({CONFIGURATION_FILE} is not there)"),
        files => files.join(", "),
    };
    let mut text = format!(
        "version              {}\ninstallation         {}\nconfiguration        {files}\n\n",
        environment.version, environment.installation
    );
    for line in &environment.settings {
        let value = format!("{} {}", line.value, line.unit);
        text.push_str(&format!("{:<20} {:<14} {}\n", line.key, value.trim_end(), line.source));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_line_with_value_unit_and_source() {
        let lines = [("default_vcpus", "1", "vCPUs", "default"), ("log_level", "\"info\"", "", "/etc/x.toml:3")];
        let settings =
            lines.map(|(key, value, unit, source)| Line { key, value: value.into(), unit, source: source.into() });
        let environment =
            Environment { version: "1", installation: "/opt/x".into(), files: vec![], settings: settings.into() };
        let text = text(&environment);
        for words in [
            "default_vcpus        1 vCPUs        default\n",
            "log_level            \"info\"         /etc/x.toml:3\n",
            "none (/etc/kata-rs/config.toml",
        ] {
            assert!(text.contains(words), "{text}");
        }
    }
}
