//! The project's kubeconfig, and kubectl with it.

use std::ffi::OsString;
use std::io::Read as _;

use zeroize::Zeroizing;

use super::{Context, machines};
use crate::exit::{Exit, WithExit as _};
use crate::kube::{kubeconfig, kubectl as kubectl_program};
use crate::progress::Silent;

/// K3s's kubeconfig on stdin becomes the project's: another server address, names and namespace.
pub(super) fn import(context: &Context) -> anyhow::Result<()> {
    let mut bytes = Zeroizing::new(Vec::new());
    std::io::stdin().lock().read_to_end(&mut bytes)?;
    let view = kubeconfig::HostView {
        server: &context.api_url(),
        cluster: context.cluster(),
        namespace: context.namespace(),
    };
    kubeconfig::write(&bytes, &view, &context.project.kubeconfig())
        .exit(Exit::Machine, "writing the kubeconfig")
}

/// Becomes kubectl.
pub(super) async fn kubectl(context: &Context, arguments: &[OsString]) -> anyhow::Result<()> {
    // The cached K3s stands in where kubectl is not installed; without either the error says so.
    let k3s = match crate::process::find_program("kubectl") {
        Some(_) => None,
        None => machines::acquire_artifacts(context, context.provider(), &Silent)
            .await
            .ok(),
    };
    let binary = k3s.map(|artifacts| artifacts.binary());
    let error = kubectl_program::exec(&context.project.kubeconfig(), binary.as_deref(), arguments);
    Err(error).exit(Exit::Host, "running kubectl")
}
