//! The one constructor of HTTP clients with TLS.

use std::sync::Once;
use std::time::Duration;

/// A builder with the time to connect and the program's name; ring is the TLS provider.
pub(crate) fn client() -> reqwest::ClientBuilder {
    static CRYPTO: Once = Once::new();
    CRYPTO.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    reqwest::Client::builder()
        .connect_timeout(Duration::from_secs(5))
        .tcp_nodelay(true)
        .user_agent(concat!("rbees/", env!("CARGO_PKG_VERSION")))
}
