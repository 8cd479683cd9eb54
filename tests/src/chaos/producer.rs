//! What the fleet is fed: objects, overwritten ones, poison, and every notification perhaps twice
//! and late.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use apache_avro::Codec;
use rand::Rng as _;
use rand::rngs::SmallRng;
use weirgate_common::queue::Queue;

use crate::avro::file;
use crate::system::System;

const PREFIX: &str = "impressions/dt=2026-03-01/";

/// What must be there in the end.
#[derive(Default)]
pub(super) struct Expected {
    /// By key: the latest version's name, which its rows begin with, and how many they are.
    pub(super) objects: BTreeMap<String, (String, u64)>,
    /// Keys of objects that no importer can read.
    pub(super) poison: Vec<String>,
    /// Messages that are no events.
    pub(super) nonsense: u64,
    pub(super) overwritten: u64,
}

impl Expected {
    /// Uploads something: mostly a new object.
    pub(super) async fn produce(&mut self, system: &System, random: &mut SmallRng) -> Result<()> {
        let rows = random.random_range(0..200);
        let name = format!("o{}", self.objects.len() as u64 + self.overwritten);
        match random.random_range(0..100) {
            0..2 => {
                let key = format!("{PREFIX}poison-{}.avro", self.poison.len());
                let mut bytes = file(&name, 50, Codec::Null);
                // Within the block, so that its end is not where it should be.
                bytes.drain(400..400 + random.random_range(1..40));
                system.put(&key, bytes).await?;
                self.poison.push(key);
            }
            2..4 => {
                system.send("{\"no\": \"event\"}").await?;
                self.nonsense += 1;
            }
            4..20 if !self.objects.is_empty() => {
                let at = random.random_range(0..self.objects.len());
                let key = self.objects.keys().nth(at).context("an object of those there")?.clone();
                system.put(&key, file(&name, rows, Codec::Snappy)).await?;
                self.objects.insert(key, (name, rows));
                self.overwritten += 1;
            }
            _ => {
                let key = format!("{PREFIX}{name}.avro");
                system.put(&key, file(&name, rows, Codec::Snappy)).await?;
                self.objects.insert(key, (name, rows));
            }
        }
        Ok(())
    }
}

/// A second subscriber of the topic, from whose queue notifications are sent again.
pub(super) struct Echo {
    queue: Queue,
    url: String,
}

impl Echo {
    pub(super) async fn subscribe(system: &System) -> Result<Self> {
        let name = format!("{}-echo", system.fleet.name);
        let created = system.clients.sqs.create_queue().queue_name(&name).send().await?;
        let url = created.queue_url().context("the echo queue's URL")?.to_owned();
        let queue = Queue::new(system.clients.sqs.clone(), &url);
        let topic = system.clients.sns.subscribe().protocol("sqs");
        topic
            .topic_arn(&system.fleet.data_plane.topic_arn)
            .endpoint(queue.settings().await?.arn)
            .send()
            .await?;
        Ok(Echo { queue, url })
    }

    /// Sends some of the notifications again, in another order, up to 15 seconds late; how many.
    pub(super) async fn repeat(&self, system: &System, random: &mut SmallRng) -> Result<u64> {
        let wait = Duration::from_secs(1);
        let mut received = self.queue.receive(10, wait, Duration::from_secs(60)).await?;
        let receipts: Vec<String> =
            received.iter().map(|message| message.receipt.clone()).collect();
        self.queue.delete(&receipts).await;
        received.reverse();
        let mut repeated = 0;
        for message in received {
            if random.random_bool(0.3) {
                let send = system.clients.sqs.send_message().message_body(message.body);
                send.queue_url(&system.fleet.data_plane.queue_url)
                    .delay_seconds(random.random_range(0..15))
                    .send()
                    .await?;
                repeated += 1;
            }
        }
        Ok(repeated)
    }

    pub(super) async fn close(self, system: &System) -> Result<()> {
        system.clients.sqs.delete_queue().queue_url(self.url).send().await?;
        Ok(())
    }
}
