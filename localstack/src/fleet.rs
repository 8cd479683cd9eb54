//! One fleet on the emulators: its two stacks, its configuration file and its database.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_autoscaling::error::DisplayErrorContext;
use aws_sdk_sqs::config::Credentials;
use serde::{Deserialize, Serialize};

use crate::emulators::{ACCESS_KEY, REGION, SECRET_KEY};
use crate::layout::{create_folder, write_atomically};
use crate::stack::{self, Outputs};

/// What the emulated fleet is tuned to: everything faster than on AWS, so that a person or a test
/// sees a whole cycle in a minute.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Most instances the group may have.
    pub instances_max: u32,
    pub freshness: Duration,
    /// The queue's visibility time-out: how long a killed importer's work waits for another.
    pub visibility: Duration,
    /// The lease importers ask for, and extend.
    pub lease: Duration,
    pub max_receive_count: u32,
    /// What an importer may take to finish what it holds after SIGTERM.
    pub drain_grace: Duration,
    pub slots: u32,
    pub raw_message_delivery: bool,
    pub scaler_period: Duration,
    /// How long the queue must read empty before the group shrinks.
    pub scaler_settle: Duration,
    /// Key pattern of the feed, after the bucket.
    pub objects: String,
    pub table: String,
    pub write: String,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            instances_max: 4,
            freshness: Duration::from_secs(60),
            visibility: Duration::from_secs(20),
            lease: Duration::from_secs(20),
            max_receive_count: 5,
            drain_grace: Duration::from_secs(10),
            slots: 4,
            raw_message_delivery: false,
            scaler_period: Duration::from_secs(1),
            scaler_settle: Duration::from_secs(10),
            objects: "impressions/dt={dt}/**.avro".to_owned(),
            table: "impressions".to_owned(),
            write: "replace".to_owned(),
        }
    }
}

/// Where the emulators listen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    pub localstack: String,
    pub moto: String,
}

impl Endpoints {
    /// What a program needs to reach the emulators, and to be unable to reach anything else.
    pub fn environment(&self) -> BTreeMap<String, String> {
        let mut environment = BTreeMap::new();
        for service in ["S3", "SNS", "SQS", "CLOUDFORMATION", "CLOUDWATCH", "IAM", "LOGS", "STS"] {
            environment.insert(format!("AWS_ENDPOINT_URL_{service}"), self.localstack.clone());
        }
        for service in ["AUTO_SCALING", "EC2"] {
            environment.insert(format!("AWS_ENDPOINT_URL_{service}"), self.moto.clone());
        }
        for (name, value) in [
            ("AWS_REGION", REGION),
            ("AWS_DEFAULT_REGION", REGION),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            // Neither a profile nor a proxy of the user's may lead a program elsewhere.
            ("AWS_CONFIG_FILE", "/dev/null"),
            ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
            ("NO_PROXY", "127.0.0.1,localhost"),
            ("no_proxy", "127.0.0.1,localhost"),
        ] {
            environment.insert(name.to_owned(), value.to_owned());
        }
        environment
    }

    pub async fn clients(&self) -> Clients {
        let shared = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::from_static(REGION))
            .credentials_provider(Credentials::new(ACCESS_KEY, SECRET_KEY, None, None, "local"))
            .load()
            .await;
        Clients::new(&shared, self)
    }
}

/// Clients that talk to the emulators whatever the environment says.
#[derive(Clone, Debug)]
pub struct Clients {
    pub s3: aws_sdk_s3::Client,
    pub sns: aws_sdk_sns::Client,
    pub sqs: aws_sdk_sqs::Client,
    pub auto_scaling: aws_sdk_autoscaling::Client,
    pub cloudwatch: aws_sdk_cloudwatch::Client,
    data_plane_stacks: aws_sdk_cloudformation::Client,
    fleet_stacks: aws_sdk_cloudformation::Client,
}

impl Clients {
    fn new(shared: &SdkConfig, at: &Endpoints) -> Self {
        let stacks = |url: &str| {
            let config = aws_sdk_cloudformation::config::Builder::from(shared).endpoint_url(url);
            aws_sdk_cloudformation::Client::from_conf(config.build())
        };
        let s3 = aws_sdk_s3::config::Builder::from(shared)
            .endpoint_url(&at.localstack)
            .force_path_style(true);
        let sns = aws_sdk_sns::config::Builder::from(shared).endpoint_url(&at.localstack);
        let sqs = aws_sdk_sqs::config::Builder::from(shared).endpoint_url(&at.localstack);
        let cloudwatch =
            aws_sdk_cloudwatch::config::Builder::from(shared).endpoint_url(&at.localstack);
        let auto_scaling =
            aws_sdk_autoscaling::config::Builder::from(shared).endpoint_url(&at.moto);
        Self {
            s3: aws_sdk_s3::Client::from_conf(s3.build()),
            sns: aws_sdk_sns::Client::from_conf(sns.build()),
            sqs: aws_sdk_sqs::Client::from_conf(sqs.build()),
            auto_scaling: aws_sdk_autoscaling::Client::from_conf(auto_scaling.build()),
            cloudwatch: aws_sdk_cloudwatch::Client::from_conf(cloudwatch.build()),
            data_plane_stacks: stacks(&at.localstack),
            fleet_stacks: stacks(&at.moto),
        }
    }
}

/// The outputs of the data-plane stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataPlane {
    pub bucket: String,
    pub bucket_arn: String,
    pub topic_arn: String,
    pub queue_url: String,
    pub queue_arn: String,
    pub dead_letter_queue_url: String,
    pub dead_letter_queue_arn: String,
}

impl DataPlane {
    fn from_outputs(mut outputs: Outputs) -> Result<Self> {
        let mut take = |name: &str| {
            outputs.remove(name).with_context(|| format!("data-plane.yaml has no output {name}"))
        };
        Ok(Self {
            bucket: take("BucketName")?,
            bucket_arn: take("BucketArn")?,
            topic_arn: take("TopicArn")?,
            queue_url: take("QueueUrl")?,
            queue_arn: take("QueueArn")?,
            dead_letter_queue_url: take("DeadLetterQueueUrl")?,
            dead_letter_queue_arn: take("DeadLetterQueueArn")?,
        })
    }
}

/// A deployed fleet. Its names are derived from its own, so deploying it again after an emulator
/// lost everything gives the same fleet.
#[derive(Clone, Debug)]
pub struct Fleet {
    pub name: String,
    pub tuning: Tuning,
    pub data_plane: DataPlane,
    /// Name of the Auto Scaling group.
    pub group: String,
    /// The fleet's `weirgate.toml`.
    pub config: PathBuf,
    /// As `database` in `weirgate.toml`.
    pub database: String,
}

impl Fleet {
    pub async fn deploy(
        clients: &Clients,
        name: &str,
        tuning: Tuning,
        database: String,
        folder: &Path,
    ) -> Result<Self> {
        // moto loads its CloudFormation at the first call, which takes as long as the deployment:
        // let it do so meanwhile. The answer does not matter.
        let (data_plane, _) = tokio::join!(
            deploy_data_plane(clients, name, &tuning),
            clients.fleet_stacks.describe_stacks().send(),
        );
        let data_plane = data_plane?;
        let group = deploy_group(clients, name, &tuning, &data_plane).await?;
        create_folder(folder)?;
        let config = folder.join("weirgate.toml");
        let fleet = Self { name: name.to_owned(), tuning, data_plane, group, config, database };
        write_atomically(&fleet.config, fleet.config_text().as_bytes())?;
        Ok(fleet)
    }

    /// After LocalStack lost it. Objects and messages are gone.
    pub async fn redeploy_data_plane(&self, clients: &Clients) -> Result<()> {
        let again = deploy_data_plane(clients, &self.name, &self.tuning).await?;
        anyhow::ensure!(
            again == self.data_plane,
            "the data-plane stack came back with other names"
        );
        Ok(())
    }

    /// After moto lost it. The group starts at zero.
    pub async fn redeploy_group(&self, clients: &Clients) -> Result<()> {
        deploy_group(clients, &self.name, &self.tuning, &self.data_plane).await?;
        Ok(())
    }

    fn config_text(&self) -> String {
        let Self { name, tuning, data_plane, group, database, .. } = self;
        let ms = |span: Duration| format!("\"{}ms\"", span.as_millis());
        let seconds = |span: Duration| format!("\"{}s\"", span.as_secs());
        format!(
            r#"# Written by weirgate-local; changes are lost at the next start.
database = {database}

[fleet.{name}]
queue              = {queue}
auto_scaling_group = {group}
freshness          = {freshness}
instances          = {{ min = 0, max = {instances_max} }}

[feed.{feed}]
fleet   = {name_text}
objects = {objects}
table   = {table}
write   = {write}

[importer]
slots       = {slots}
lease       = {lease}
drain_grace = {drain_grace}

[scaler]
period = {period}
settle = {settle}
"#,
            database = text(database),
            queue = text(&data_plane.queue_url),
            group = text(group),
            freshness = seconds(tuning.freshness),
            instances_max = tuning.instances_max,
            feed = feed_name(&tuning.table),
            name_text = text(name),
            objects = text(&format!("s3://{}/{}", data_plane.bucket, tuning.objects)),
            table = text(&tuning.table),
            write = text(&tuning.write),
            slots = tuning.slots,
            lease = seconds(tuning.lease),
            drain_grace = ms(tuning.drain_grace),
            period = ms(tuning.scaler_period),
            settle = ms(tuning.scaler_settle),
        )
    }
}

/// JSON strings are TOML basic strings.
fn text(value: &str) -> String {
    serde_json::Value::from(value).to_string()
}

fn feed_name(table: &str) -> String {
    table.replace('.', "_")
}

async fn deploy_data_plane(clients: &Clients, name: &str, tuning: &Tuning) -> Result<DataPlane> {
    let parameters = BTreeMap::from([
        ("Name".to_owned(), name.to_owned()),
        ("VisibilityTimeoutSeconds".to_owned(), tuning.visibility.as_secs().to_string()),
        ("MaxReceiveCount".to_owned(), tuning.max_receive_count.to_string()),
        ("RawMessageDelivery".to_owned(), tuning.raw_message_delivery.to_string()),
    ]);
    let stack = format!("{name}-data-plane");
    let outputs =
        stack::deploy(&clients.data_plane_stacks, &stack, stack::DATA_PLANE, &parameters).await?;
    DataPlane::from_outputs(outputs)
}

async fn deploy_group(
    clients: &Clients,
    name: &str,
    tuning: &Tuning,
    data_plane: &DataPlane,
) -> Result<String> {
    let parameters = BTreeMap::from([
        ("Name".to_owned(), name.to_owned()),
        ("GroupName".to_owned(), format!("{name}-importers")),
        ("MinSize".to_owned(), "0".to_owned()),
        ("MaxSize".to_owned(), tuning.instances_max.to_string()),
        ("QueueArn".to_owned(), data_plane.queue_arn.clone()),
        ("DeadLetterQueueArn".to_owned(), data_plane.dead_letter_queue_arn.clone()),
        ("BucketArn".to_owned(), data_plane.bucket_arn.clone()),
    ]);
    let stack = format!("{name}-fleet");
    let mut outputs =
        stack::deploy(&clients.fleet_stacks, &stack, stack::FLEET, &parameters).await?;
    let group = outputs.remove("GroupName").context("fleet.yaml has no output GroupName")?;
    add_what_moto_leaves_out(clients, name, tuning, &group).await?;
    Ok(group)
}

/// The hook, which moto's CloudFormation skips, and the suspended process, which no template can
/// express. moto honours neither; they are here for whoever looks at the group.
async fn add_what_moto_leaves_out(
    clients: &Clients,
    name: &str,
    tuning: &Tuning,
    group: &str,
) -> Result<()> {
    let explain = |what: &'static str| {
        move |error: String| anyhow::anyhow!("{what} of the emulated group: {error}")
    };
    let heartbeat = i32::try_from(tuning.drain_grace.as_secs()).unwrap_or(i32::MAX).max(30);
    clients
        .auto_scaling
        .put_lifecycle_hook()
        .auto_scaling_group_name(group)
        .lifecycle_hook_name(format!("{name}-drain"))
        .lifecycle_transition("autoscaling:EC2_INSTANCE_TERMINATING")
        .heartbeat_timeout(heartbeat)
        .default_result("CONTINUE")
        .send()
        .await
        .map_err(|error| DisplayErrorContext(error).to_string())
        .map_err(explain("put the drain hook"))?;
    clients
        .auto_scaling
        .suspend_processes()
        .auto_scaling_group_name(group)
        .scaling_processes("AZRebalance")
        .send()
        .await
        .map_err(|error| DisplayErrorContext(error).to_string())
        .map_err(explain("suspend AZRebalance"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use weirgate_common::config::Config;

    #[test]
    fn the_written_configuration_is_one_the_programs_accept() {
        let arn = "arn:aws:sqs:us-east-1:000000000000:ads".to_owned();
        let fleet = Fleet {
            name: "ads".to_owned(),
            tuning: Tuning { table: "ads.impressions".to_owned(), ..Tuning::default() },
            data_plane: DataPlane {
                bucket: "ads-000000000000-us-east-1".to_owned(),
                bucket_arn: "arn:aws:s3:::ads-000000000000-us-east-1".to_owned(),
                topic_arn: arn.clone(),
                queue_url: "http://127.0.0.1:21000/queue/us-east-1/000000000000/ads".to_owned(),
                queue_arn: arn.clone(),
                dead_letter_queue_url: "http://127.0.0.1:21000/queue/us-east-1/0/dlq".to_owned(),
                dead_letter_queue_arn: arn,
            },
            group: "ads-importers".to_owned(),
            config: PathBuf::from("weirgate.toml"),
            database: "sqlite:///tmp/a \"quoted\" folder/weirgate.db".to_owned(),
        };
        let config = Config::parse(&fleet.config_text(), &BTreeMap::new())
            .unwrap_or_else(|problems| panic!("{problems:?}"));
        assert_eq!(config.fleets["ads"].auto_scaling_group.as_deref(), Some("ads-importers"));
        assert_eq!(config.scaler.settle, Duration::from_secs(10));
        let key = "impressions/dt=2026-11-20/hour=07/part-00001.avro";
        let bucket = &fleet.data_plane.bucket;
        assert_eq!(config.feeds_for("ads", bucket, key).count(), 1);
    }
}
