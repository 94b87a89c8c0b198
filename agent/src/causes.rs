//! An error with everything behind it, in one line.

/// `error` with everything it was caused by, each said once. Libraries often keep in the sources
/// what says most: aya the kernel's errno, hyper the operating system's.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}
