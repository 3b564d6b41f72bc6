//! Requests that are no message of their kind: INVALID_ARGUMENT with the method's name. ttrpc alone says UNKNOWN, which containerd takes for a
//! fault of the shim.

use std::collections::HashMap;

use async_trait::async_trait;
use pod::ErrorKind;
use ttrpc::{
    Request, Response,
    r#async::{MethodHandler, Service, TtrpcContext},
};

use crate::refusal::Refusal;

/// The same services, whose methods refuse what they cannot read.
pub fn refused(mut services: HashMap<String, Service>) -> HashMap<String, Service> {
    for service in services.values_mut() {
        let methods = std::mem::take(&mut service.methods);
        let careful = |(name, inner): (String, Box<dyn MethodHandler + Send + Sync>)| {
            let method: Box<dyn MethodHandler + Send + Sync> = Box::new(Careful { name: name.clone(), inner });
            (name, method)
        };
        service.methods = methods.into_iter().map(careful).collect();
    }
    services
}

struct Careful {
    name: String,
    inner: Box<dyn MethodHandler + Send + Sync>,
}

#[async_trait]
impl MethodHandler for Careful {
    async fn handler(&self, context: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        match self.inner.handler(context, request).await {
            // What a handler of ours says is in its answer; an error of its own is that the message could not be read.
            Err(error) => {
                let sentence = format!("the request of {} is not a message of its kind: {error}", self.name);
                let status = Refusal::new(ErrorKind::InvalidArgument, sentence).into();
                Ok(Response { status: Some(status).into(), ..Response::default() })
            }
            answer => answer,
        }
    }
}
