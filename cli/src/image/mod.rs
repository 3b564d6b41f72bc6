//! From an OCI image on disk to a folder that can be a container's lower layer.
//!
//! [`layout`] finds blobs, in an archive or a folder; [`layer`] applies one layer's tar to a folder; [`store`] does it once per image,
//! keyed by content, below the user's cache folder.

mod layer;
mod layout;
mod store;

pub use layout::Layout;
pub use store::Store;
