fn main() -> std::process::ExitCode {
    weirgate_operator::cli::run(std::env::args_os())
}
