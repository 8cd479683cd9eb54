fn main() -> std::process::ExitCode {
    weirgate_scaler::cli::run(std::env::args_os())
}
