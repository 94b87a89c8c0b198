//! What the kinds of Istio's `security.istio.io` have in common.

/// Makes `$kind`, which has a field `metadata`, an object of the API called `$plural`. Its versions differ
/// in their names alone.
macro_rules! security_kind {
    ($kind:ident, $plural:literal) => {
        impl k8s_openapi::Resource for $kind {
            const API_VERSION: &'static str = "security.istio.io/v1";
            const GROUP: &'static str = "security.istio.io";
            const KIND: &'static str = stringify!($kind);
            const VERSION: &'static str = "v1";
            const URL_PATH_SEGMENT: &'static str = $plural;
            type Scope = k8s_openapi::NamespaceResourceScope;
        }

        impl k8s_openapi::Metadata for $kind {
            type Ty = ObjectMeta;

            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn metadata_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }

        impl $kind {
            /// What Istio before 1.22 has alone.
            pub(super) const FORMER_API_VERSION: &'static str = "security.istio.io/v1beta1";
        }
    };
}
pub(super) use security_kind;
