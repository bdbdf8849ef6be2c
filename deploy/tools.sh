# What deploy/up and deploy/test share: finding or installing the tools, building the page. Sourced, with the repository as working folder.

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

apt_updated=
# Installs Debian packages: needs root, or sudo.
apt_install() {
  local why=$1
  shift
  say "installing with apt-get: $* ($why)"
  local as=
  [ "$(id -u)" = 0 ] || as=sudo
  [ -z "$as" ] || command -v sudo >/dev/null || die "please install these packages as root, then start again: $*"
  if [ -z "$apt_updated" ]; then
    $as apt-get update -qq >&2
    apt_updated=1
  fi
  $as env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}

need_build_tools() {
  command -v cargo >/dev/null || [ ! -e "$HOME/.cargo/env" ] || . "$HOME/.cargo/env"
  command -v cargo >/dev/null || die "Rust is missing: install it with rustup, then start again"
  command -v cc >/dev/null || apt_install "a C compiler and linker, which Rust and the ring crate use" gcc libc6-dev
  if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    apt_install "Node.js and npm, which bundle the page" nodejs npm
  fi
  local major
  major=$(node -p 'process.versions.node.split(".")[0]')
  [ "$major" -ge 18 ] || die "Node.js $major is too old to bundle the page: 18 or newer is needed (Debian 12 has it)"
}

# Installs a folder's npm packages as its lock file says, unless that has been done since the lock file changed.
npm_packages() {
  local stamp=$1/node_modules/.roomlog-lock
  cmp -s "$1/package-lock.json" "$stamp" 2>/dev/null && return
  say "npm packages of $1, into $1/node_modules"
  (cd "$1" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2)
  cp "$1/package-lock.json" "$stamp"
}

# Bundles the page when a source is newer than the bundle.
build_page() {
  local page=nuve/web
  if [ -e $page/dist/index.html ] && [ -z "$(find $page -name node_modules -prune -o -path $page/dist -prune -o -type f -newer $page/dist/index.html -print -quit)" ]; then
    return
  fi
  npm_packages $page
  say "bundling the page"
  (cd $page && npm run --silent build >&2)
  touch $page/dist/index.html
}
