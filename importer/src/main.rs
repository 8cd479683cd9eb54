fn main() -> std::process::ExitCode {
    weirgate_importer::cli::run(std::env::args_os())
}
