//! The one constructor of HTTP clients with TLS.

use std::sync::Once;
use std::time::Duration;

/// How long a connection may take to be made, looking its name up included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

static CRYPTO: Once = Once::new();

/// Makes ring the process's TLS provider, once; a provider that is installed already stays.
pub fn install_crypto() {
    CRYPTO.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

/// A pooled HTTP client for the programs of one fleet.
///
/// They are reached directly: proxies of the environment are meant for the internet, and would
/// break loopback. There is no total time limit, because streams last; callers set their own.
///
/// # Errors
/// When the platform's TLS roots cannot be read.
pub fn http_client() -> reqwest::Result<reqwest::Client> {
    install_crypto();
    reqwest::Client::builder()
        .no_proxy()
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .user_agent(concat!("rbees/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .build()
}
