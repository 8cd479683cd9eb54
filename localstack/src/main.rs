fn main() -> std::process::ExitCode {
    weirgate_local::cli::run(std::env::args_os())
}
