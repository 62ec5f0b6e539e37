//! Traces by OpenTelemetry: on where the standard's environment names a collector, off otherwise.
//!
//! Spans wait in a bounded queue for a thread of their own, which sends them as protobuf over HTTP; what does not fit is dropped. So a collector that
//! is slow or gone costs a request nothing. What is read besides is the standard's too: sampler, queue, headers, timeouts, service name
//! (<https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>).

use std::time::Duration;

use anyhow::Result;
use assay_api::traces;
use opentelemetry::KeyValue;
use opentelemetry::global::BoxedTracer;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;

/// Where all signals are sent, with a path added; or traces alone, as it is.
pub const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
/// How long the last spans may take on their way when the process ends.
const LAST: Duration = Duration::from_secs(3);

/// Traces that are on. Dropped, the last spans are sent.
pub struct Traces(SdkTracerProvider);

fn set(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// The collector that the environment names, if traces are wanted. What it is called in the environment comes first.
pub fn collector() -> Option<(&'static str, String)> {
    let off = set("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
        || set("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none");
    if off {
        return None;
    }
    ENDPOINTS.iter().find_map(|name| Some((*name, set(name)?)))
}

impl Traces {
    /// Switches traces on if the environment names a collector. `service` is what the process is called, unless the environment says otherwise.
    /// A collector that cannot be used is warned about, and nothing else: it is no reason not to serve.
    pub fn start(service: &'static str) -> Option<Traces> {
        let (name, _) = collector()?;
        match provider(service) {
            Ok(provider) => {
                traces::install(BoxedTracer::new(Box::new(provider.tracer("assay"))));
                Some(Traces(provider))
            }
            Err(e) => {
                tracing::warn!(reason = %e, "{name} cannot be used; traces are off");
                None
            }
        }
    }
}

fn provider(service: &'static str) -> Result<SdkTracerProvider> {
    let exporter = SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary).build()?;
    let mut resource =
        Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    let named = set("OTEL_SERVICE_NAME").is_some()
        || set("OTEL_RESOURCE_ATTRIBUTES").is_some_and(|all| all.contains("service.name="));
    if !named {
        resource = resource.with_service_name(service);
    }
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build())
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(e) = self.0.shutdown_with_timeout(LAST) {
            tracing::warn!(reason = %e, "the last spans were not sent");
        }
    }
}
