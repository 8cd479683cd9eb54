//! AWS clients, made in one way: region, credentials and endpoints from the standard
//! environment (`AWS_REGION`, `AWS_ENDPOINT_URL_SQS`, …), time-outs that fit long polls.

use std::time::Duration;

use aws_config::SdkConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};

/// Longest long poll SQS allows.
pub const LONG_POLL_MAX: Duration = Duration::from_secs(20);

/// One attempt of any call must end in this time. Longer than a long poll: a receive that is
/// given up early strands the messages it would have returned until their visibility expires.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(35);

/// The shared SDK configuration of this process.
pub async fn sdk_config() -> SdkConfig {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(5))
        .operation_attempt_timeout(ATTEMPT_TIMEOUT)
        .build();
    aws_config::defaults(aws_config::BehaviorVersion::latest())
        .timeout_config(timeouts)
        .load()
        .await
}

/// S3, addressed by path when an endpoint is configured: emulators have no DNS for buckets.
///
/// The time-out per attempt covers only the response head; bodies are guarded by the SDK's
/// stalled-stream protection instead, since an object may be gigabytes.
pub fn s3(config: &SdkConfig) -> aws_sdk_s3::Client {
    let emulated = std::env::var_os("AWS_ENDPOINT_URL_S3").is_some()
        || std::env::var_os("AWS_ENDPOINT_URL").is_some();
    aws_sdk_s3::Client::from_conf(
        aws_sdk_s3::config::Builder::from(config).force_path_style(emulated).build(),
    )
}

pub fn sqs(config: &SdkConfig) -> aws_sdk_sqs::Client {
    aws_sdk_sqs::Client::new(config)
}

pub fn auto_scaling(config: &SdkConfig) -> aws_sdk_autoscaling::Client {
    aws_sdk_autoscaling::Client::new(config)
}

/// `Code: message` as the service said it, else the transport error with its causes.
pub fn describe<E>(error: &SdkError<E>) -> String
where
    SdkError<E>: ProvideErrorMetadata,
    E: std::error::Error + 'static,
{
    match (error.code(), error.message()) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code.to_owned(),
        (None, _) => crate::fault::chain(error),
    }
}
