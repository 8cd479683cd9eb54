//! What EC2 tells an instance (IMDSv2), and what its Auto Scaling group hears from it. The
//! emulated group knows neither.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post, put};

const TOKEN: &str = "a-session-token";

/// One instance's services, on a port of their own, until dropped.
pub struct Instance {
    pub url: String,
    told: Arc<Mutex<Told>>,
    server: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct Told {
    id: String,
    target_state: &'static str,
    spot_action: Option<String>,
    /// Actions asked of the group, in order.
    heard: Vec<String>,
}

impl Instance {
    pub async fn start(id: &str) -> Result<Self> {
        let told = Arc::new(Mutex::new(Told {
            id: id.to_owned(),
            target_state: "InService",
            spot_action: None,
            heard: Vec::new(),
        }));
        let services = Router::new()
            .route("/latest/api/token", put(token))
            .route("/latest/meta-data/{*path}", get(metadata))
            .route("/", post(auto_scaling))
            .with_state(told.clone());
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let server = tokio::spawn(async move {
            axum::serve(listener, services).await.expect("a listener that is bound is served");
        });
        Ok(Instance { url, told, server })
    }

    /// What an importer on this instance has in its environment.
    pub fn environment(&self) -> [(&str, &str); 3] {
        [
            ("AWS_EC2_METADATA_DISABLED", "false"),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &self.url),
            ("AWS_ENDPOINT_URL_AUTO_SCALING", &self.url),
        ]
    }

    /// The group terminates it; its hook waits.
    pub fn terminate(&self) {
        lock(&self.told).target_state = "Terminated";
    }

    /// AWS takes it back at this time (ISO 8601).
    pub fn take_back(&self, at: &str) {
        lock(&self.told).spot_action = Some(format!(r#"{{"action":"terminate","time":"{at}"}}"#));
    }

    pub fn heard(&self, action: &str) -> usize {
        lock(&self.told).heard.iter().filter(|heard| *heard == action).count()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn token() -> ([(&'static str, &'static str); 1], &'static str) {
    ([("x-aws-ec2-metadata-token-ttl-seconds", "21600")], TOKEN)
}

async fn metadata(
    State(told): State<Arc<Mutex<Told>>>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Result<String, StatusCode> {
    // Version 2 alone, as the launch template demands.
    if headers.get("x-aws-ec2-metadata-token").is_none_or(|token| token != TOKEN) {
        return Err(StatusCode::UNAUTHORIZED);
    }
    let told = lock(&told);
    match path.as_str() {
        "instance-id" => Ok(told.id.clone()),
        "autoscaling/target-lifecycle-state" => Ok(told.target_state.to_owned()),
        "spot/instance-action" => told.spot_action.clone().ok_or(StatusCode::NOT_FOUND),
        _ => Err(StatusCode::NOT_FOUND),
    }
}

/// The query protocol: a form in, XML out.
async fn auto_scaling(State(told): State<Arc<Mutex<Told>>>, form: String) -> String {
    let action = form.split('&').find_map(|pair| pair.strip_prefix("Action=")).unwrap_or_default();
    let mut told = lock(&told);
    if action != "DescribeLifecycleHooks" {
        for expected in [format!("InstanceId={}", told.id), "LifecycleHookName=ads-drain".into()] {
            assert!(form.contains(&expected), "{form}");
        }
    }
    told.heard.push(action.to_owned());
    let result = match action {
        "DescribeLifecycleHooks" => {
            "<LifecycleHooks><member><LifecycleHookName>ads-drain</LifecycleHookName>\
             <LifecycleTransition>autoscaling:EC2_INSTANCE_TERMINATING</LifecycleTransition>\
             <HeartbeatTimeout>2</HeartbeatTimeout></member></LifecycleHooks>"
        }
        _ => "",
    };
    format!(
        "<{action}Response xmlns=\"http://autoscaling.amazonaws.com/doc/2011-01-01/\">\
         <{action}Result>{result}</{action}Result></{action}Response>"
    )
}
