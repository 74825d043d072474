//! The allocator.

/// A cycle of the gate makes and frees hundreds of small arrays, and answers are freed by another thread than made them.
#[cfg(feature = "python")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Gives freed memory back to the system. The allocator does so only while memory is asked for: what a start needed
/// for a moment would stay with a service that has little to do.
#[allow(unsafe_code)]
pub fn give_back() {
    #[cfg(feature = "python")]
    // SAFETY: it touches nothing but memory that is free, and may be called at any time on any thread.
    unsafe {
        libmimalloc_sys::mi_collect(true);
    }
}
