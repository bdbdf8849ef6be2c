//! Builds this crate anew when the web page was built: what is embedded is decided at compile time.

fn main() {
    println!("cargo:rerun-if-changed=web/dist");
}
