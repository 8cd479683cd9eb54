//! A world, from outside: what the templates of `infra/` deploy, and what survives a death.

use std::time::Duration;

use anyhow::Result;
use aws_sdk_sqs::types::QueueAttributeName;
use sqlx::{Connection as _, PgConnection};
use weirgate_local::fleet::{Fleet, Tuning};
use weirgate_local::world::{DatabaseKind, Options, Revived, World};

/// One world for all of this, since most of the time goes into starting it.
#[tokio::test]
async fn a_world_is_what_the_templates_say_and_survives_deaths() -> Result<()> {
    let options = Options { database: DatabaseKind::Postgres, ..Options::new("test-world") };
    let mut world = World::start(options).await?;

    notifications_reach_the_queue(&world, &world.fleet).await?;
    redrive_is_as_declared(&world).await?;
    the_group_grows_and_shrinks(&world).await?;

    let raw = Tuning { raw_message_delivery: true, ..Tuning::default() };
    let second = world.add_fleet("second", DatabaseKind::Postgres, raw).await?;
    notifications_reach_the_queue(&world, &second).await?;
    assert_ne!(second.database, world.fleet.database);

    let mut connection = PgConnection::connect(&world.fleet.database).await?;
    sqlx::query("CREATE TABLE kept (n int)").execute(&mut connection).await?;
    world.localstack.kill().await;
    world.moto.kill().await;
    world.postgres.as_mut().expect("asked for").kill().await;
    assert_eq!(world.tend().await?, [Revived::LocalStack, Revived::Moto, Revived::Postgres]);
    assert_eq!(world.tend().await?, []);
    notifications_reach_the_queue(&world, &world.fleet).await?;
    notifications_reach_the_queue(&world, &second).await?;
    the_group_grows_and_shrinks(&world).await?;
    let mut connection = PgConnection::connect(&world.fleet.database).await?;
    sqlx::query("INSERT INTO kept VALUES (1)").execute(&mut connection).await?;
    connection.close().await?;

    let pids = world.pid_files();
    assert_eq!(pids.running().len(), 3);
    world.stop().await;
    assert_eq!(pids.running().len(), 0);
    Ok(())
}

async fn notifications_reach_the_queue(world: &World, fleet: &Fleet) -> Result<()> {
    let key = "impressions/dt=2026-11-20/part 1.avro";
    let body = aws_sdk_s3::primitives::ByteStream::from_static(b"not avro");
    let bucket = &fleet.data_plane.bucket;
    world.clients.s3.put_object().bucket(bucket).key(key).body(body).send().await?;
    let queue = &fleet.data_plane.queue_url;
    // S3 sends a test event first when a notification is set up.
    for _ in 0..5 {
        let received = world
            .clients
            .sqs
            .receive_message()
            .queue_url(queue)
            .wait_time_seconds(2)
            .send()
            .await?;
        for message in received.messages() {
            let body = message.body().unwrap_or_default();
            if body.contains("ObjectCreated:Put") {
                let wrapped = body.contains("\"Type\": \"Notification\"");
                assert_eq!(wrapped, !fleet.tuning.raw_message_delivery, "{body}");
                world.clients.sqs.purge_queue().queue_url(queue).send().await?;
                return Ok(());
            }
        }
    }
    panic!("no notification arrived in the queue of {}", fleet.name)
}

async fn redrive_is_as_declared(world: &World) -> Result<()> {
    let attributes = world
        .clients
        .sqs
        .get_queue_attributes()
        .queue_url(&world.fleet.data_plane.queue_url)
        .attribute_names(QueueAttributeName::All)
        .send()
        .await?
        .attributes
        .unwrap_or_default();
    let redrive = &attributes[&QueueAttributeName::RedrivePolicy];
    assert!(redrive.contains(&world.fleet.data_plane.dead_letter_queue_arn), "{redrive}");
    assert!(redrive.contains("5"), "{redrive}");
    assert_eq!(attributes[&QueueAttributeName::VisibilityTimeout], "20");
    Ok(())
}

async fn the_group_grows_and_shrinks(world: &World) -> Result<()> {
    let group = &world.fleet.group;
    for desired in [2, 0] {
        let client = &world.clients.auto_scaling;
        client
            .set_desired_capacity()
            .auto_scaling_group_name(group)
            .desired_capacity(desired)
            .send()
            .await?;
        let seen = client
            .describe_auto_scaling_groups()
            .auto_scaling_group_names(group)
            .send()
            .await?
            .auto_scaling_groups
            .unwrap_or_default();
        assert_eq!(seen[0].instances().len(), usize::try_from(desired)?);
        assert_eq!(seen[0].max_size(), Some(4));
        assert_eq!(seen[0].suspended_processes()[0].process_name(), Some("AZRebalance"));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
