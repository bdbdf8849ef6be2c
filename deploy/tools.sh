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

# Installs a cargo command of exactly this version into the target folder, unless it is there, and puts it first on the path.
cargo_tool() {
  local name=$1 version=$2 root=$PWD/target/tools
  case ":$PATH:" in *":$root/bin:"*) ;; *) export PATH=$root/bin:$PATH ;; esac
  [ -x "$root/bin/$name" ] && "$root/bin/$name" --version 2>/dev/null | grep -qw "$version" && return
  say "cargo install $name $version, into target/tools"
  cargo install --quiet --locked --root "$root" "$name@$version"
}

# Python that can make itself a folder of packages.
need_python() {
  command -v python3 >/dev/null && python3 -c 'import venv, ensurepip' 2>/dev/null || apt_install "$1" python3 python3-venv
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

# Debian releases that have the NATS servers to test with: the oldest that Roomlog supports (2.10), and the newest there is.
nats_suites="trixie sid"

# Prints this machine's own Debian sources with another release in place of its own, in the form that apt's *.sources files have.
debian_sources_of() {
  local suite=$1 own
  own=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
  [ -n "$own" ] || return 1
  {
    # One paragraph each (deb822), then one line each.
    for file in /etc/apt/sources.list.d/*.sources; do
      if [ -e "$file" ]; then
        grep -v '^#' "$file" || true
        echo
      fi
    done | awk -v own="$own" -v suite="$suite" '
      BEGIN { RS = ""; FS = "\n" }
      !/(^|\n)Enabled: *no/ {
        text = ""; named = 0; signed = ""; uris = ""
        for (i = 1; i <= NF; i++) {
          key = tolower($i); sub(/:.*/, "", key)
          if (key == "suites") { n = split($i, word, /[ \t]+/); for (j = 2; j <= n; j++) if (word[j] == own) named = 1 }
          if (key == "uris") uris = $i
          if (key == "signed-by") { signed = $i; for (k = i + 1; k <= NF && $k ~ /^[ \t]/; k++) signed = signed "\n" $k }
        }
        if (named && uris != "") { print "Types: deb\n" uris "\nSuites: " suite "\nComponents: main" (signed != "" ? "\n" signed : "") "\n"; exit }
      }'
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
      if [ -e "$file" ]; then cat "$file"; fi
    done | awk -v own="$own" -v suite="$suite" '
      $1 == "deb" {
        signed = ""; uri = 2
        if ($2 ~ /^\[/) { for (uri = 2; uri <= NF; uri++) { if (match($uri, /signed-by=[^] ]+/)) signed = substr($uri, RSTART + 10, RLENGTH - 10); if ($uri ~ /\]$/) break }; uri++ }
        if ($(uri + 1) == own) { print "Types: deb\nURIs: " $uri "\nSuites: " suite "\nComponents: main" (signed != "" ? "\nSigned-By: " signed : "") "\n"; exit }
      }'
  } | awk 'BEGIN { RS = ""; ORS = "\n\n" } NR == 1'
}

# Brings the NATS servers that the tests start into target/tools/nats/<version>/nats-server. They are not installed: this machine's own packages
# and sources stay as they are. What is downloaded is verified with the keys that apt has.
need_nats() {
  local folder=$PWD/target/tools/nats
  [ -z "${ROOMLOG_NATS_SERVERS:-}" ] || return 0
  local suite
  for suite in $nats_suites; do
    [ -x "$folder/.$suite/nats-server" ] || fetch_nats "$folder" "$suite"
  done
}

fetch_nats() {
  local folder=$1 suite=$2
  local elsewhere="or put two versions into target/tools/nats/VERSION/nats-server and name that folder in ROOMLOG_NATS_SERVERS"
  say "fetching nats-server from Debian $suite into target/tools/nats (for tests; nothing is installed)"
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || die "apt-get is missing: run this on Debian, $elsewhere"
  local work
  work=$(mktemp -d)
  mkdir -p "$work"/lists/partial "$work"/cache/archives/partial "$work"/out
  debian_sources_of "$suite" >"$work/nats.sources"
  [ -s "$work/nats.sources" ] || die "no Debian source is found in /etc/apt: add one, $elsewhere"
  local options=(-q -o Dir::Etc::sourcelist="$work/nats.sources" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache"
    -o Dir::State::status=/dev/null -o Debug::NoLocking=1 -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=3
    -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false)
  if ! apt-get "${options[@]}" -o APT::Update::Error-Mode=any update >"$work/log" 2>&1; then
    # An installation from before that release has no key of it yet; a newer version of this package has.
    apt_install "the keys of newer Debian releases" debian-archive-keyring
    apt-get "${options[@]}" -o APT::Update::Error-Mode=any update >"$work/log" 2>&1 || {
      cat "$work/log" >&2
      die "the package list of Debian $suite cannot be read (above): check the network and the keys, $elsewhere"
    }
  fi
  (cd "$work/out" && apt-get "${options[@]}" download nats-server >>"$work/log" 2>&1) || {
    cat "$work/log" >&2
    die "nats-server cannot be downloaded from Debian $suite (above), $elsewhere"
  }
  dpkg-deb -x "$work"/out/nats-server_*.deb "$work/out"
  local version
  version=$("$work/out/usr/sbin/nats-server" --version | sed -n 's/^nats-server: v//p')
  [ -n "$version" ] || die "the nats-server of Debian $suite does not run here, $elsewhere"
  mkdir -p "$folder/$version"
  cp "$work/out/usr/sbin/nats-server" "$folder/$version/nats-server"
  ln -sfn "$version" "$folder/.$suite"
  rm -rf "$work"
}
