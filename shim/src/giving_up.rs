//! The one call that is ours: `shim delete` tells a living daemon that nobody wants a container any more.
//!
//! containerd's own calls cannot say it: `Delete` waits for the output of what has ended and refuses what runs, and `shim delete` has five
//! seconds. The daemon takes the word and goes on by itself, however long the guest takes, and ends with its last container as ever.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use containerd_shim_protos::api::DeleteRequest;
use pod::ErrorKind;
use protobuf::Message;
use ttrpc::{
    Code,
    r#async::{MethodHandler, Service, TtrpcContext},
    context::Context,
    proto::{Request, Response},
};

use crate::{containers::Containers, ending::Ending, refusal::Refusal};

const SERVICE: &str = "kata_rs.shim.v1.Containers";
const METHOD: &str = "GiveUp";

/// The handler under its name.
pub fn handlers(containers: Arc<Containers>, ending: Ending) -> HashMap<String, Service> {
    let handler: Box<dyn MethodHandler + Send + Sync> = Box::new(GiveUp { containers, ending });
    let methods = HashMap::from([(METHOD.to_owned(), handler)]);
    HashMap::from([(SERVICE.to_owned(), Service { methods, streams: HashMap::new() })])
}

struct GiveUp {
    containers: Arc<Containers>,
    ending: Ending,
}

#[async_trait]
impl MethodHandler for GiveUp {
    async fn handler(&self, _: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let outcome = match DeleteRequest::parse_from_bytes(&request.payload) {
            Ok(request) => self.give_up(request.id).await,
            Err(error) => Err(Refusal::new(ErrorKind::InvalidArgument, error.to_string())),
        };
        let status = match outcome.map_err(ttrpc::Error::from) {
            Ok(()) => ttrpc::get_status(Code::OK, ""),
            Err(ttrpc::Error::RpcStatus(status)) => status,
            Err(error) => ttrpc::get_status(Code::INTERNAL, error.to_string()),
        };
        let mut response = Response::new();
        response.set_status(status);
        Ok(response)
    }
}

impl GiveUp {
    // In a task of its own: who asked may not have the time.
    async fn give_up(&self, id: String) -> Result<(), Refusal> {
        let (containers, ending) = (Arc::clone(&self.containers), self.ending.clone());
        let given_up = tokio::spawn(async move {
            let given_up = containers.give_up(&id).await;
            if let Err(refusal) = &given_up {
                log::warn!("the container {id} cannot be given up: {refusal}");
            }
            ending.after_a_container().await;
            given_up
        });
        given_up.await.unwrap_or_else(|error| Err(Refusal::new(ErrorKind::Internal, error.to_string())))
    }
}

/// Says it to the daemon behind `client`.
///
/// # Errors
/// The daemon has not done it within the context's time; it may do it yet.
pub fn give_up(client: &ttrpc::Client, context: &Context, id: &str) -> ttrpc::Result<()> {
    let wanted = DeleteRequest { id: id.to_owned(), ..DeleteRequest::default() };
    let request = Request {
        service: SERVICE.to_owned(),
        method: METHOD.to_owned(),
        timeout_nano: context.timeout_nano,
        payload: wanted.write_to_bytes().map_err(|error| ttrpc::Error::Others(error.to_string()))?,
        ..Request::default()
    };
    client.request(request).map(drop)
}
