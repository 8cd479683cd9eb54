//! The fuzz targets on their seeds, among them everything that was ever found.

#[path = "../fuzz/src/lib.rs"]
#[allow(unreachable_pub)]
mod targets;

fn run(name: &str, target: fn(&[u8])) {
    let folder = format!("{}/fuzz/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
    let mut seeds = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        target(&std::fs::read(entry.unwrap().path()).unwrap());
        seeds += 1;
    }
    assert!(seeds > 0, "no seeds in {folder}");
}

#[test]
fn seeds() {
    run("container", targets::container);
    run("schema", targets::schema_text);
    run("block", targets::block);
    run("resolve", targets::resolve);
    run("changes", targets::changes);
}
