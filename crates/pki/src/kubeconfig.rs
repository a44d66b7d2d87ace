//! Kubeconfig files for one user of one cluster.

use base64::Engine as _;

use crate::Pair;

/// What a kubeconfig says.
#[derive(Clone, Debug)]
pub struct Kubeconfig<'a> {
    /// Name of the cluster, the user and the context alike.
    pub name: &'a str,
    /// `https://…`.
    pub server: &'a str,
    pub authority_pem: &'a str,
    pub user: &'a Pair,
}

impl Kubeconfig<'_> {
    /// The file's text.
    pub fn to_yaml(&self) -> String {
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let (name, server) = (self.name, self.server);
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- cluster:\n    certificate-authority-data: {}\n    server: {server}\n  name: {name}\n\
             contexts:\n- context:\n    cluster: {name}\n    user: {name}\n  name: {name}\ncurrent-context: {name}\npreferences: {{}}\n\
             users:\n- name: {name}\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
            encode(self.authority_pem),
            encode(&self.user.certificate_pem),
            encode(&self.user.key_pem),
        )
    }
}
