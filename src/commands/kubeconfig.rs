//! The project's kubeconfig, and kubectl with it.

use std::ffi::OsString;
use std::io::Read as _;

use zeroize::Zeroizing;

use super::{Context, artifacts};
use crate::cli::cluster::KubeconfigArgs;
use crate::exit::{Exit, WithExit as _};
use crate::kube::{kubeconfig, kubectl as kubectl_program, nodes};
use crate::progress::Silent;

/// A server's kubeconfig on stdin becomes the project's: another server address, names and namespace.
pub(super) async fn import(context: &Context, server: Option<&str>) -> anyhow::Result<()> {
    let mut bytes = Zeroizing::new(Vec::new());
    std::io::stdin().lock().read_to_end(&mut bytes)?;
    let first = context.config.server().map(|node| node.name.value.as_str());
    take(context, server.or(first).unwrap_or_default(), &bytes).await
}

/// Makes a server's kubeconfig the project's; a further server's only while the project's leads to nobody.
pub(super) async fn take(context: &Context, server: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let first = context.config.server();
    if first.is_some_and(|first| first.name.value != server) && answers(context).await {
        return Ok(());
    }
    keep(context, server, bytes)
}

/// Whether the project's kubeconfig leads to an API server.
pub(super) async fn answers(context: &Context) -> bool {
    let kubeconfig = context.project.kubeconfig();
    if !kubeconfig.exists() {
        return false;
    }
    match crate::kube::connect_impatient(&kubeconfig).await {
        Ok(client) => nodes::registered(&client).await.is_ok(),
        Err(_) => false,
    }
}

/// `orch cluster kubeconfig`: its path, or its entries in another one.
pub(super) fn show(context: &Context, arguments: &KubeconfigArgs) -> anyhow::Result<()> {
    let own = context.project.kubeconfig();
    if !arguments.merge {
        context.ui.result(&own.display().to_string());
        return Ok(());
    }
    let merging = "merging the kubeconfig";
    let listed = std::env::var_os("KUBECONFIG").filter(|list| !list.is_empty());
    let home = std::env::var_os("HOME");
    let file = arguments
        .into
        .clone()
        .or_else(|| kubeconfig::default_file(listed.as_deref(), home.as_deref()))
        .ok_or_else(|| {
            anyhow::anyhow!("neither KUBECONFIG nor HOME says where it is; name it with --into")
        })
        .exit(Exit::Input, merging)?;
    let name = arguments.name.as_deref().unwrap_or(context.cluster());
    let merged = kubeconfig::merge(&own, &file, name, arguments.force, arguments.current)
        .exit(Exit::Input, merging)?;
    if !merged.in_place {
        context.ui.note(&format!(
            "{} had a form that cannot be edited in place: it means the same, comments in it are gone",
            merged.file.display()
        ));
    }
    if context.ui.is_json() {
        context.ui.result_json(&merged);
        return Ok(());
    }
    let done = if merged.changed { "has" } else { "already has" };
    context.ui.result(&format!(
        "{} {done} the context {name}",
        merged.file.display()
    ));
    if !merged.current {
        context.ui.note(&format!(
            "`kubectl config use-context {name}` makes it the current one"
        ));
    }
    Ok(())
}

/// Writes the project's kubeconfig from that of a server.
pub(super) fn keep(context: &Context, server: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let view = kubeconfig::HostView {
        server: &context.api_url(server),
        cluster: context.cluster(),
        namespace: context.namespace(),
    };
    kubeconfig::write(bytes, &view, &context.project.kubeconfig())
        .exit(Exit::Machine, "writing the kubeconfig")
}

/// Becomes kubectl.
pub(super) async fn kubectl(context: &Context, arguments: &[OsString]) -> anyhow::Result<()> {
    // The cached K3s stands in where kubectl is not installed; without either the error says so.
    let k3s = match crate::process::find_program("kubectl") {
        Some(_) => None,
        None => artifacts::find(context, context.provider(), &Silent)
            .await
            .ok(),
    };
    let binary = k3s.map(|artifacts| artifacts.binary());
    let error = kubectl_program::exec(&context.project.kubeconfig(), binary.as_deref(), arguments);
    Err(error).exit(Exit::Host, "running kubectl")
}
