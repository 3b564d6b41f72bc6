//! Kernel modules as values: what each depends on, in which order a set of them loads, and the two index files that
//! `modprobe` reads. This is `depmod`, for a tree that is never installed.
//!
//! Source: `modules.dep(5)`, and the `.modinfo` section of a module (Linux `include/linux/moduleparam.h`).
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use thiserror::Error;

use crate::elf::{self, ElfError};
use crate::tree::{Kind, Tree};

/// Why modules could not be catalogued.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ModulesError {
    /// A file that ends in .ko is no module.
    #[error("{path} is not a kernel module")]
    Format {
        /// Inside the tree.
        path: String,
        /// What is wrong with it.
        #[source]
        source: ElfError,
    },
    /// The kernel package lacks something.
    #[error("the kernel package has no module {name}; the kernel changed, adapt rootfs-builder/src/machine_image.rs")]
    Missing {
        /// With underscores.
        name: String,
    },
}

/// One module file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Where it lies in the tree.
    pub path: String,
    depends: Vec<String>,
    aliases: Vec<String>,
}

/// All modules of a tree by name, with underscores for dashes as the kernel has it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    modules: BTreeMap<String, Module>,
}

impl Catalog {
    /// Reads every `.ko` file of the tree.
    pub fn of(tree: &Tree) -> Result<Self, ModulesError> {
        let mut modules = BTreeMap::new();
        for (path, node) in tree.iter() {
            let Kind::File(content) = &node.kind else { continue };
            let Some(name) = path.rsplit('/').next().and_then(|name| name.strip_suffix(".ko")) else { continue };
            let format = |source| ModulesError::Format { path: path.to_owned(), source };
            let info = elf::section(content, ".modinfo").map_err(format)?.unwrap_or_default();
            modules.insert(plain(name), module(path, info));
        }
        Ok(Self { modules })
    }

    /// The named modules and all they need, each after what it depends on.
    pub fn load_order(&self, names: &[&str]) -> Result<Vec<&Module>, ModulesError> {
        let mut seen = BTreeSet::new();
        let mut order = Vec::new();
        for name in names {
            self.visit(&plain(name), &mut seen, &mut order)?;
        }
        Ok(order)
    }

    fn visit<'a>(
        &'a self,
        name: &str,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<&'a Module>,
    ) -> Result<(), ModulesError> {
        if !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let module = self.modules.get(name).ok_or_else(|| ModulesError::Missing { name: name.to_owned() })?;
        for dependency in &module.depends {
            self.visit(dependency, seen, order)?;
        }
        order.push(module);
        Ok(())
    }

    /// The content of `modules.dep` for these modules, with paths below `base`; what loads first stands last.
    pub fn dependency_index(&self, modules: &[&Module], base: &str) -> Result<String, ModulesError> {
        let mut text = String::new();
        for module in modules {
            let mut needs = self.load_order(&module.depends.iter().map(String::as_str).collect::<Vec<_>>())?;
            needs.reverse();
            let _ = write!(text, "{}:", below(&module.path, base));
            needs.iter().for_each(|needed| {
                let _ = write!(text, " {}", below(&needed.path, base));
            });
            text.push('\n');
        }
        Ok(text)
    }
}

/// The content of `modules.alias` for these modules: what the kernel asks for when it wants a module by its purpose.
pub fn alias_index(modules: &[&Module]) -> String {
    let lines = modules.iter().flat_map(|module| {
        let name = plain(module.path.rsplit('/').next().unwrap_or_default().trim_end_matches(".ko"));
        module.aliases.iter().map(move |alias| format!("alias {alias} {name}\n"))
    });
    lines.collect()
}

fn module(path: &str, info: &[u8]) -> Module {
    let mut module = Module { path: path.to_owned(), depends: Vec::new(), aliases: Vec::new() };
    for field in info.split(|byte| *byte == 0) {
        let field = String::from_utf8_lossy(field);
        match field.split_once('=') {
            Some(("depends", names)) => {
                module.depends.extend(names.split(',').filter(|name| !name.is_empty()).map(plain))
            }
            Some(("alias", alias)) => module.aliases.push(alias.to_owned()),
            _ => {}
        }
    }
    module
}

fn plain(name: &str) -> String {
    name.replace('-', "_")
}

fn below<'a>(path: &'a str, base: &str) -> &'a str {
    path.strip_prefix(base).unwrap_or(path).trim_start_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog(modules: &[(&str, &str)]) -> Catalog {
        let entry = |(name, depends): &(&str, &str)| {
            let info = format!("license=GPL\0depends={depends}\0alias=fs-{name}\0");
            (plain(name), module(&format!("lib/kernel/{name}.ko"), info.as_bytes()))
        };
        Catalog { modules: modules.iter().map(entry).collect() }
    }

    fn names(modules: &[&Module]) -> Vec<String> {
        modules.iter().map(|module| below(&module.path, "lib/kernel").to_owned()).collect()
    }

    #[test]
    fn a_module_loads_after_everything_it_needs() {
        let catalog = catalog(&[("kvm-amd", "kvm,ccp"), ("kvm", "irqbypass"), ("irqbypass", ""), ("ccp", "")]);
        let order = catalog.load_order(&["kvm_amd"]).unwrap();
        assert_eq!(names(&order), ["irqbypass.ko", "kvm.ko", "ccp.ko", "kvm-amd.ko"]);
    }

    #[test]
    fn the_index_names_what_loads_first_last() {
        let catalog = catalog(&[("a", "b"), ("b", "c"), ("c", "")]);
        let order = catalog.load_order(&["a"]).unwrap();
        let index = catalog.dependency_index(&order, "lib").unwrap();
        assert!(index.ends_with("kernel/a.ko: kernel/b.ko kernel/c.ko\n"), "{index}");
        assert!(alias_index(&order).contains("alias fs-a a\n"));
    }

    #[test]
    fn a_missing_module_is_named() {
        let error = catalog(&[("a", "gone")]).load_order(&["a"]).unwrap_err();
        assert_eq!(error, ModulesError::Missing { name: "gone".to_owned() });
    }

    #[test]
    fn modules_that_depend_on_each_other_do_not_loop() {
        assert_eq!(catalog(&[("a", "b"), ("b", "a")]).load_order(&["a"]).unwrap().len(), 2);
    }
}
