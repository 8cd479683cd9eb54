//! The shape of the code, enforced: which crate may depend on which, in which order the files of
//! a crate build on each other, how long a file may be, and what nobody may call.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::visit::Visit;

const CRATES: [&str; 7] =
    ["avro", "common", "importer", "scaler", "operator", "localstack", "tests"];

/// Data and control flow one way: `avro` ← `common` ← programs ← `localstack` ← `tests`.
fn may_depend_on(folder: &str) -> &'static [&'static str] {
    match folder {
        "avro" => &[],
        "common" => &["avro"],
        "importer" | "scaler" | "operator" => &["avro", "common"],
        "localstack" => &["common", "importer", "scaler", "operator"],
        "tests" => &CRATES,
        other => panic!("{other} is not listed here; say what it may depend on"),
    }
}

/// Lines of code before a file's own tests. A file has one job; past this it has two.
const LINES_MAX: usize = 600;

fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the crate lies in the workspace").to_owned()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return found };
    for entry in entries {
        let path = entry.expect("the folder can be read").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn crates_depend_one_way() {
    let packages: BTreeMap<String, &str> = CRATES
        .into_iter()
        .map(|folder| {
            let manifest = read(&root().join(folder).join("Cargo.toml"));
            let name = manifest
                .lines()
                .find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
                .expect("a package has a name");
            (name.to_owned(), folder)
        })
        .collect();
    for folder in CRATES {
        let manifest = read(&root().join(folder).join("Cargo.toml"));
        for line in manifest.lines() {
            let dependency = line.split(['.', ' ', '=']).next().unwrap_or_default();
            let Some(on) = packages.get(dependency) else { continue };
            assert!(
                may_depend_on(folder).contains(on),
                "{folder}/Cargo.toml: {folder} must not depend on {on}; see ARCHITECTURE.md"
            );
        }
    }
}

/// `lib.rs` lists the modules in the order in which data (or a decision) flows; a file uses only
/// what stands above it.
#[test]
fn files_import_only_from_files_above_them() {
    let mut wrong = Vec::new();
    for folder in CRATES {
        let src = root().join(folder).join("src");
        let order = modules(&src.join("lib.rs"));
        for file in sources(&src) {
            let relative = file.strip_prefix(&src).expect("sources lie in src");
            let module = relative.iter().next().and_then(|part| part.to_str()).unwrap_or_default();
            let module = module.trim_end_matches(".rs");
            let Some(own) = order.iter().position(|name| name == module) else { continue };
            for used in crate_paths(&file) {
                if order.iter().position(|name| *name == used).is_some_and(|at| at > own) {
                    let file = relative.display();
                    wrong.push(format!(
                        "{folder}/src/{file} uses {used}, which comes after {module}"
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn modules(lib: &Path) -> Vec<String> {
    let file = syn::parse_file(&read(lib)).expect("lib.rs is Rust");
    file.items
        .iter()
        .filter_map(|item| match item {
            syn::Item::Mod(module) => Some(module.ident.to_string()),
            _ => None,
        })
        .collect()
}

/// First segments after `crate::` anywhere in the file outside its tests.
fn crate_paths(file: &Path) -> BTreeSet<String> {
    #[derive(Default)]
    struct Paths(BTreeSet<String>);
    impl<'ast> Visit<'ast> for Paths {
        fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
            let is_test = |attribute: &syn::Attribute| attribute.path().is_ident("cfg");
            if !module.attrs.iter().any(is_test) {
                syn::visit::visit_item_mod(self, module);
            }
        }
        fn visit_use_path(&mut self, path: &'ast syn::UsePath) {
            if path.ident == "crate" {
                first_names(&path.tree, &mut self.0);
            }
        }
        fn visit_path(&mut self, path: &'ast syn::Path) {
            let mut segments = path.segments.iter();
            if segments.next().is_some_and(|first| first.ident == "crate") {
                self.0.extend(segments.next().map(|second| second.ident.to_string()));
            }
            syn::visit::visit_path(self, path);
        }
    }
    fn first_names(tree: &syn::UseTree, names: &mut BTreeSet<String>) {
        match tree {
            syn::UseTree::Path(path) => {
                names.insert(path.ident.to_string());
            }
            syn::UseTree::Name(name) => {
                names.insert(name.ident.to_string());
            }
            syn::UseTree::Group(group) => {
                group.items.iter().for_each(|item| first_names(item, names));
            }
            syn::UseTree::Rename(_) | syn::UseTree::Glob(_) => {}
        }
    }
    let mut paths = Paths::default();
    let parsed = syn::parse_file(&read(file));
    paths.visit_file(&parsed.unwrap_or_else(|error| panic!("{}: {error}", file.display())));
    paths.0
}

#[test]
fn files_have_one_job() {
    let mut wrong = Vec::new();
    for folder in CRATES {
        for file in sources(&root().join(folder).join("src")) {
            let text = read(&file);
            let own = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
            let lines = text[..own].lines().count();
            if lines > LINES_MAX {
                wrong.push(format!("{}: {lines} lines before its tests", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "split these files:\n{}", wrong.join("\n"));
}

/// Clippy bans clocks and unseeded randomness (clippy.toml); the exceptions are these files, and
/// each says why on the spot.
#[test]
fn clocks_and_chance_are_asked_in_few_places() {
    let allowed = ["common/src/clock.rs"];
    let lint = concat!("disallowed", "_methods");
    for folder in CRATES {
        for file in sources(&root().join(folder)) {
            let relative = file.strip_prefix(root()).expect("sources lie in the workspace");
            let name = relative.to_str().unwrap_or_default();
            let asks = read(&file).contains(lint);
            assert!(
                !asks || allowed.contains(&name),
                "{name} lets itself call what clippy.toml bans; take time and seed as arguments"
            );
        }
    }
}

#[test]
fn nothing_is_left_unfinished() {
    let marks = [
        concat!("to", "do!("),
        concat!("unimpl", "emented!("),
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
    ];
    for folder in CRATES {
        for file in sources(&root().join(folder)) {
            let text = read(&file);
            for mark in marks {
                assert!(!text.contains(mark), "{} has a {mark}", file.display());
            }
        }
    }
}
