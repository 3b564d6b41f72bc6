//! A client of containerd's CRI socket: the calls that the kubelet makes of a container runtime, one function each, blocking.
//!
//! The messages and the client below [`v1`] are generated from Kubernetes' own interface file (`proto/api.proto`, which keeps its
//! licence header), without protoc and without the server half. A crate of its own, because compiling the messages takes longer than
//! all that uses them.
//!
//! The tests are threads that wait; so one value of [`Cri`] serves any number of them, and each call blocks its caller alone.

use std::{path::Path, time::Duration};

use tokio::runtime::{Builder, Runtime};
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint},
};

/// Kubernetes' messages and services, as generated.
#[allow(missing_docs, clippy::all, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

pub use tonic::Code;
pub use v1::{image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient};

/// Longest that a call may take: what the kubelet allows by default (`--runtime-request-timeout`).
pub const CALL_DEADLINE: Duration = Duration::from_secs(120);
/// Largest answer, the output of an ExecSync included; the kubelet takes as much.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Why a call gave no answer.
#[derive(Debug, thiserror::Error)]
#[error("{call}: {}: {}", .status.code(), .status.message())]
pub struct CallError {
    /// The name that the interface file gives the call.
    pub call: &'static str,
    /// Code and message, as the runtime gave them.
    pub status: Status,
}

impl CallError {
    /// The code of gRPC.
    pub fn code(&self) -> Code {
        self.status.code()
    }

    /// The runtime's sentence.
    pub fn message(&self) -> &str {
        self.status.message()
    }
}

/// What a call returns.
pub type Answer<T> = Result<T, CallError>;

/// A connection to a CRI socket. It is made at the first call, and anew after the other side was restarted.
pub struct Cri {
    tasks: Runtime,
    containers: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

/// One blocking function for each call of the interface.
macro_rules! calls {
    ($($service:ident: $call:ident($request:ident) -> $response:ident, $name:literal;)*) => {
        $(
            #[doc = concat!("`", $name, "` of the interface file.")]
            pub fn $call(&self, request: v1::$request) -> Answer<v1::$response> {
                let mut client = self.$service.clone();
                let answered = self.tasks.block_on(async { client.$call(request).await });
                answered.map(Response::into_inner).map_err(|status| CallError { call: $name, status })
            }
        )*
    };
}

impl Cri {
    /// Of the socket at a path.
    pub fn of(socket: &Path) -> Result<Self, Box<dyn std::error::Error>> {
        let tasks = Builder::new_current_thread().enable_all().build()?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?.timeout(CALL_DEADLINE);
        let channel = tasks.block_on(async { endpoint.connect_lazy() });
        Ok(Self {
            tasks,
            containers: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
            images: ImageServiceClient::new(channel),
        })
    }

    calls! {
        containers: version(VersionRequest) -> VersionResponse, "Version";
        containers: status(StatusRequest) -> StatusResponse, "Status";
        containers: run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse, "RunPodSandbox";
        containers: stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse, "StopPodSandbox";
        containers: remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse, "RemovePodSandbox";
        containers: pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse, "PodSandboxStatus";
        containers: list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse, "ListPodSandbox";
        containers: create_container(CreateContainerRequest) -> CreateContainerResponse, "CreateContainer";
        containers: start_container(StartContainerRequest) -> StartContainerResponse, "StartContainer";
        containers: stop_container(StopContainerRequest) -> StopContainerResponse, "StopContainer";
        containers: remove_container(RemoveContainerRequest) -> RemoveContainerResponse, "RemoveContainer";
        containers: list_containers(ListContainersRequest) -> ListContainersResponse, "ListContainers";
        containers: container_status(ContainerStatusRequest) -> ContainerStatusResponse, "ContainerStatus";
        containers: update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse,
            "UpdateContainerResources";
        containers: reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse, "ReopenContainerLog";
        containers: exec_sync(ExecSyncRequest) -> ExecSyncResponse, "ExecSync";
        containers: exec(ExecRequest) -> ExecResponse, "Exec";
        containers: attach(AttachRequest) -> AttachResponse, "Attach";
        containers: port_forward(PortForwardRequest) -> PortForwardResponse, "PortForward";
        containers: container_stats(ContainerStatsRequest) -> ContainerStatsResponse, "ContainerStats";
        containers: list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse, "ListContainerStats";
        containers: pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse, "PodSandboxStats";
        images: image_status(ImageStatusRequest) -> ImageStatusResponse, "ImageStatus";
        images: list_images(ListImagesRequest) -> ListImagesResponse, "ListImages";
    }
}
