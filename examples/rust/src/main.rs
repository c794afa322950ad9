//! A box through its life, with the client that is generated for Rust.

use base64::{prelude::BASE64_STANDARD, Engine};
use boxlite_client::apis::{
    boxes_api, configuration::Configuration, executions_api, files_api, Error,
};
use boxlite_client::models::{CreateBoxRequest, ErrorResponse, StartExecutionRequest};
use serde_json::Value;
use std::{env, fs};

const GREET: &str = "echo What is your name?; until [ -e /tmp/name ]; do sleep 0.1; done; \
                     read -r name < /tmp/name; echo Hello, $name.";

type Outcome = Result<(), Box<dyn std::error::Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    let server = Configuration {
        base_path: env::var("BOXLITE_REST_URL").unwrap_or("http://127.0.0.1:8200".into()),
        bearer_access_token: env::var("BOXLITE_API_KEY").ok(),
        ..Configuration::default()
    };
    let wanted = CreateBoxRequest {
        name: Some("greeter-in-rust".into()),
        image: Some("alpine:latest".into()),
        start: Some(true),
        ..CreateBoxRequest::default()
    };
    let made = boxes_api::create_box(&server, wanted.clone(), None).await?;
    let outcome = greet(&server, &made.box_id, wanted).await;
    boxes_api::remove_box(&server, &made.box_id, Some(true), None).await?;
    outcome
}

async fn greet(server: &Configuration, id: &str, wanted: CreateBoxRequest) -> Outcome {
    let command = StartExecutionRequest {
        args: Some(vec!["-c".into(), GREET.into()]),
        ..StartExecutionRequest::new("sh".into())
    };
    let execution = executions_api::start_execution(server, id, command, None)
        .await?
        .execution_id;
    let mut stream = executions_api::stream_execution_output(server, id, &execution, None).await?;
    let mut lines = Vec::new();
    let mut event = String::new();
    while let Some(chunk) = stream.chunk().await? {
        lines.extend_from_slice(&chunk);
        while let Some(end) = lines.iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8(lines.drain(..=end).collect())?;
            match line.trim_end().split_once(": ") {
                Some(("event", name)) => event = name.into(),
                Some(("data", data)) => {
                    on_event(server, id, &event, serde_json::from_str(data)?).await?
                }
                _ => {}
            }
        }
    }
    let file = files_api::read_file(server, id, "/tmp/name", None, None, None, None).await?;
    print!("file: {}", file.text().await?);
    if let Err(Error::ResponseError(answer)) = boxes_api::create_box(server, wanted, None).await {
        let answer: ErrorResponse = serde_json::from_str(&answer.content)?;
        println!("error: {}", answer.error.code);
    }
    Ok(())
}

async fn on_event(server: &Configuration, id: &str, event: &str, data: Value) -> Outcome {
    match event {
        "stdout" => {
            let output = BASE64_STANDARD.decode(data["data"].as_str().unwrap_or_default())?;
            let text = String::from_utf8(output)?;
            print!("{text}");
            if text.ends_with("?\n") {
                let name = env::temp_dir().join("greeter-name");
                fs::write(&name, "Ada\n")?;
                files_api::write_file(server, id, "/tmp/name", name, None, None, None, None)
                    .await?;
            }
        }
        "exit" => println!("exit code: {}", data["exit_code"]),
        _ => {}
    }
    Ok(())
}
