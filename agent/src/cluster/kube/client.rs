//! How the API server is reached, and as whom.

use std::path::PathBuf;
use std::time::Duration;

use ::kube::config::{KubeConfigOptions, Kubeconfig};
use ::kube::{Client, Config};

/// An unreachable API server is given up on after so long, and tried again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where to look for the API server's address and the credentials for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// This kubeconfig; else, as kubectl does, `$KUBECONFIG` or `~/.kube/config`, and
    /// in a pod the pod's own service account.
    pub kubeconfig: Option<PathBuf>,
    /// This context of it; else its current one.
    pub context: Option<String>,
}

/// Why there is no client. Says nothing of whether the API server answers.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A kubeconfig that was named can't be used.
    #[error("kubeconfig {}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: ::kube::config::KubeconfigError,
    },
    /// Neither a kubeconfig nor a pod's service account was found.
    #[error(
        "no way to the API server was found; run in a pod with a service account, set \
         KUBECONFIG, or pass --kubeconfig"
    )]
    NotFound(#[source] ::kube::config::InferConfigError),
    /// The context that was asked for can't be used.
    #[error("context {context} of the kubeconfig")]
    Context {
        /// Its name.
        context: String,
        /// Why not.
        source: ::kube::config::KubeconfigError,
    },
    /// The configuration makes no client, such as for a certificate that can't be read.
    #[error("the API server's address, certificate or credentials can't be used")]
    Unusable(#[source] ::kube::Error),
}

/// A client. Nothing is sent to the API server yet.
pub async fn client(access: &Access) -> Result<Client, ClientError> {
    let mut config = config(access).await?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    Client::try_from(config).map_err(ClientError::Unusable)
}

/// A client that gives every answer of the API server to its caller, who has a schedule of
/// their own, and the API server's address.
pub(super) async fn without_retries(access: &Access) -> Result<(Client, String), ClientError> {
    let mut config = config(access).await?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.default_retry = false;
    let address = config.cluster_url.to_string();
    let client = Client::try_from(config).map_err(ClientError::Unusable)?;
    Ok((client, address))
}

async fn config(access: &Access) -> Result<Config, ClientError> {
    let options = KubeConfigOptions {
        context: access.context.clone(),
        ..KubeConfigOptions::default()
    };
    match (&access.kubeconfig, &access.context) {
        (Some(path), _) => {
            let failed = |source| ClientError::Kubeconfig {
                path: path.clone(),
                source,
            };
            let file = Kubeconfig::read_from(path).map_err(failed)?;
            Config::from_custom_kubeconfig(file, &options)
                .await
                .map_err(failed)
        }
        (None, Some(context)) => {
            let failed = |source| ClientError::Context {
                context: context.clone(),
                source,
            };
            Config::from_kubeconfig(&options).await.map_err(failed)
        }
        (None, None) => Config::infer().await.map_err(ClientError::NotFound),
    }
}
