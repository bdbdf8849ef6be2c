/* A disk that can lose its power, for one folder of one process.
 *
 * Preloaded, it stands between the process and the system's calls that change files. What happens under POWER_DIR is written in order
 * into POWER_LOG: every write with its bytes, every change of a directory, where each sync began and ended, and what the process said on
 * its standard output, which is how it acknowledges. disk.rs reads that and builds the folder as a disk could hold it when the power
 * went at any point between two records.
 *
 *   POWER_DIR      the folder, absolute
 *   POWER_LOG      the record, appended to
 *   POWER_SYNC_US  how long a sync takes, at most; no sync reaches the real disk
 *   POWER_LIE      name of files whose syncs are answered with success and do nothing: a disk that lies
 *   POWER_FAULT    class,name,acks,n,errno,count: once `acks` lines were acknowledged, the n-th call of the class (write, sync, meta,
 *                  all) on files of that name (* for any) fails with errno, and the count - 1 after it; 0 is for ever
 *
 * A record, integers in the machine's order:
 *   u32 magic  u8 kind  u8[3] 0  u64 inode  u64 a  u64 b  u32 bytes of the first text  u32 bytes of the second  both texts
 *
 * One lock is held over a change and its record, so their order is the order things happened in. A sync counts for what was recorded
 * before it began. sync_file_range is recorded and counts for nothing: it leaves the disk's cache and the file's size where they are. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind {
    CREATED = 1, WROTE, CUT, SYNC_BEGAN, SYNC_ENDED, RENAMED, UNLINKED, MADE_DIRECTORY, REMOVED_DIRECTORY, LINKED, SAID, RANGE, FAULT, OPENED
};
enum class { CLASS_WRITE = 1, CLASS_SYNC = 2, CLASS_META = 4 };

struct header {
    uint32_t magic;
    uint8_t kind, zero[3];
    uint64_t inode, a, b;
    uint32_t first, second;
};

#define MAGIC 0x31525750u /* "PWR1" */
#define INODES 65536      /* slots for the inodes seen; a run opens some hundred files */
#define NAME 32

static char root[PATH_MAX];
static size_t root_length;
static dev_t device;
static int record_fd = -1;
static unsigned sync_us;
static const char *lie;
static struct { int classes, error; char name[NAME]; long acks, n, count; } fault;
static long acks, calls;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct { uint64_t inode; char name[NAME]; } seen[INODES];

__attribute__((constructor)) static void start(void) {
    const char *directory = getenv("POWER_DIR"), *log = getenv("POWER_LOG"), *text;
    struct stat stat;
    if (!directory || !log || fstatat(AT_FDCWD, directory, &stat, 0) != 0) return;
    snprintf(root, sizeof root, "%s", directory);
    root_length = strlen(root);
    device = stat.st_dev;
    if ((text = getenv("POWER_SYNC_US"))) sync_us = (unsigned)atoi(text);
    lie = getenv("POWER_LIE");
    if ((text = getenv("POWER_FAULT"))) {
        char class[16];
        if (sscanf(text, "%15[^,],%31[^,],%ld,%ld,%d,%ld", class, fault.name, &fault.acks, &fault.n, &fault.error, &fault.count) != 6) {
            fprintf(stderr, "power shim: POWER_FAULT is not understood: %s\n", text);
            _exit(99);
        }
        fault.classes = !strcmp(class, "write") ? CLASS_WRITE : !strcmp(class, "sync") ? CLASS_SYNC : !strcmp(class, "meta") ? CLASS_META : 7;
    }
    record_fd = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

/* ---- the record; with the lock held ---- */

static void record(enum kind kind, uint64_t inode, uint64_t a, uint64_t b, const void *first, size_t n, const void *second, size_t m) {
    struct header header = { MAGIC, (uint8_t)kind, { 0 }, inode, a, b, (uint32_t)n, (uint32_t)m };
    struct iovec parts[3] = { { &header, sizeof header }, { (void *)first, n }, { (void *)second, m } };
    int saved = errno;
    if (syscall(SYS_writev, record_fd, parts, 3) != (long)(sizeof header + n + m)) {
        static const char text[] = "power shim: the record cannot be written\n";
        syscall(SYS_write, 2, text, sizeof text - 1);
        _exit(99);
    }
    errno = saved;
}

/* ---- which files ---- */

/* The path below the root, without a leading slash; NULL if it is elsewhere. */
static const char *below(int at, const char *path, char *whole) {
    if (record_fd < 0 || !path) return NULL;
    if (path[0] == '/') {
        snprintf(whole, PATH_MAX, "%s", path);
    } else {
        char link[64];
        ssize_t n;
        if (at == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
        else snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        n = readlink(link, whole, PATH_MAX - 1);
        if (n < 0) return NULL;
        snprintf(whole + n, (size_t)(PATH_MAX - n), "/%s", path);
    }
    if (strncmp(whole, root, root_length) != 0) return NULL;
    if (whole[root_length] == 0) return "";
    return whole[root_length] == '/' ? whole + root_length + 1 : NULL;
}

static const char *base(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static void remember(uint64_t inode, const char *path) {
    size_t i = inode * 0x9e3779b97f4a7c15u >> 48;
    while (seen[i].inode && seen[i].inode != inode) i = (i + 1) % INODES;
    seen[i].inode = inode;
    snprintf(seen[i].name, NAME, "%s", base(path));
}

/* The name it was opened by; NULL if it is none of ours. */
static const char *tracked(int fd, struct stat *stat) {
    size_t i;
    if (record_fd < 0 || fstat(fd, stat) != 0 || stat->st_dev != device) return NULL;
    if (!S_ISREG(stat->st_mode) && !S_ISDIR(stat->st_mode)) return NULL;
    for (i = stat->st_ino * 0x9e3779b97f4a7c15u >> 48; seen[i].inode; i = (i + 1) % INODES)
        if (seen[i].inode == stat->st_ino) return seen[i].name;
    return NULL;
}

/* ---- faults; with the lock held ---- */

/* The error this call is to fail with, or 0. `first` hears whether it is the first of them. */
static int faulty(enum class class, const char *name, int *first) {
    if (!(fault.classes & class) || acks < fault.acks) return 0;
    if (strcmp(fault.name, "*") != 0 && strcmp(fault.name, name) != 0) return 0;
    calls++;
    if (calls < fault.n || (fault.count && calls >= fault.n + fault.count)) return 0;
    if (first) *first = calls == fault.n;
    record(FAULT, 0, (uint64_t)fault.error, (uint64_t)class, name, strlen(name), NULL, 0);
    return fault.error;
}

#define REFUSE(class, name) do { \
        int error_ = faulty(class, name, NULL); \
        if (error_) { pthread_mutex_unlock(&lock); errno = error_; return -1; } \
    } while (0)

/* ---- opening ---- */

static int open_it(int at, const char *path, int flags, mode_t mode) {
    char whole[PATH_MAX];
    const char *name = below(at, path, whole);
    struct stat stat;
    int fd, there;
    if (!name) return (int)syscall(SYS_openat, at, path, flags, mode);
    pthread_mutex_lock(&lock);
    there = fstatat(at, path, &stat, 0) == 0;
    if (((flags & O_CREAT) && !there) || ((flags & O_TRUNC) && there) || (fault.error == EROFS && (flags & O_ACCMODE) != O_RDONLY))
        REFUSE(CLASS_META, base(name));
    fd = (int)syscall(SYS_openat, at, path, flags, mode);
    if (fd >= 0 && fstat(fd, &stat) == 0 && (S_ISREG(stat.st_mode) || S_ISDIR(stat.st_mode))) {
        remember(stat.st_ino, name);
        record(there ? OPENED : CREATED, stat.st_ino, 0, 0, name, strlen(name), NULL, 0);
        if (there && (flags & O_TRUNC)) record(CUT, stat.st_ino, 0, 0, NULL, 0, NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

#define MODE mode_t mode = 0; \
    if (flags & (O_CREAT | __O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }
int open(const char *path, int flags, ...) { MODE return open_it(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return open_it(AT_FDCWD, path, flags | O_LARGEFILE, mode); }
int openat(int at, const char *path, int flags, ...) { MODE return open_it(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE return open_it(at, path, flags | O_LARGEFILE, mode); }
int creat(const char *path, mode_t mode) { return open_it(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return open_it(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

/* ---- writing ---- */

/* `offset` is -1 to write where the file stands. */
static ssize_t write_it(int fd, const void *bytes, size_t count, off_t offset) {
    struct stat stat;
    const char *name;
    ssize_t done;
    int error, first = 0;
    if (record_fd >= 0 && fd == STDOUT_FILENO && offset < 0) {
        const char *at = bytes, *end = at + count;
        pthread_mutex_lock(&lock);
        for (; at && (at = memmem(at, (size_t)(end - at), "ack ", 4)); at++) acks++;
        record(SAID, 0, 0, 0, bytes, count, NULL, 0);
        pthread_mutex_unlock(&lock);
    }
    if (!(name = tracked(fd, &stat)))
        return offset < 0 ? syscall(SYS_write, fd, bytes, count) : syscall(SYS_pwrite64, fd, bytes, count, offset);
    pthread_mutex_lock(&lock);
    if ((error = faulty(CLASS_WRITE, name, &first))) {
        /* A disk that fills up takes what still fits. */
        if (!(error == ENOSPC && first && count > 1)) {
            pthread_mutex_unlock(&lock);
            errno = error;
            return -1;
        }
        count /= 2;
    }
    if (offset < 0) {
        int flags = fcntl(fd, F_GETFL);
        offset = flags & O_APPEND ? (fstat(fd, &stat), stat.st_size) : lseek(fd, 0, SEEK_CUR);
        done = syscall(SYS_write, fd, bytes, count);
    } else {
        done = syscall(SYS_pwrite64, fd, bytes, count, offset);
    }
    if (done > 0) record(WROTE, stat.st_ino, (uint64_t)offset, 0, bytes, (size_t)done, NULL, 0);
    pthread_mutex_unlock(&lock);
    return done;
}

ssize_t write(int fd, const void *bytes, size_t count) { return write_it(fd, bytes, count, -1); }
ssize_t pwrite(int fd, const void *bytes, size_t count, off_t offset) { return write_it(fd, bytes, count, offset); }
ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t offset) { return write_it(fd, bytes, count, offset); }

ssize_t writev(int fd, const struct iovec *parts, int count) {
    struct stat stat;
    int i;
    if (fd != STDOUT_FILENO && !tracked(fd, &stat)) return syscall(SYS_writev, fd, parts, count);
    /* The first part alone: a short write is a write. */
    for (i = 0; i < count; i++)
        if (parts[i].iov_len) return write_it(fd, parts[i].iov_base, parts[i].iov_len, -1);
    return 0;
}

static ssize_t write_parts(int fd, const struct iovec *parts, int count, off_t offset) {
    int i;
    for (i = 0; i < count; i++)
        if (parts[i].iov_len) return write_it(fd, parts[i].iov_base, parts[i].iov_len, offset);
    return 0;
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) { return write_parts(fd, parts, count, offset); }
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) { return write_parts(fd, parts, count, offset); }

int ftruncate(int fd, off_t length) {
    struct stat stat;
    const char *name = tracked(fd, &stat);
    int done;
    if (!name) return (int)syscall(SYS_ftruncate, fd, length);
    pthread_mutex_lock(&lock);
    REFUSE(CLASS_WRITE, name);
    done = (int)syscall(SYS_ftruncate, fd, length);
    if (done == 0) record(CUT, stat.st_ino, (uint64_t)length, 0, NULL, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return done;
}
int ftruncate64(int fd, off64_t length) { return ftruncate(fd, length); }

/* Ways to write that this file does not follow are not there; the callers have others. */
ssize_t copy_file_range(int in, off64_t *at, int out, off64_t *to, size_t count, unsigned flags) {
    struct stat stat;
    if (tracked(out, &stat)) { errno = ENOSYS; return -1; }
    return syscall(SYS_copy_file_range, in, at, out, to, count, flags);
}
ssize_t sendfile(int out, int in, off_t *at, size_t count) {
    struct stat stat;
    if (tracked(out, &stat)) { errno = ENOSYS; return -1; }
    return syscall(SYS_sendfile, out, in, at, count);
}
ssize_t sendfile64(int out, int in, off64_t *at, size_t count) { return sendfile(out, in, at, count); }
int fallocate(int fd, int mode, off_t offset, off_t length) {
    struct stat stat;
    if (tracked(fd, &stat)) { errno = EOPNOTSUPP; return -1; }
    return (int)syscall(SYS_fallocate, fd, mode, offset, length);
}
int fallocate64(int fd, int mode, off64_t offset, off64_t length) { return fallocate(fd, mode, offset, length); }
static void *map_it(void *at, size_t length, int protection, int flags, int fd, off_t offset) {
    struct stat stat;
    if (fd >= 0 && (flags & MAP_SHARED) && (protection & PROT_WRITE) && tracked(fd, &stat)) {
        fprintf(stderr, "power shim: a file is written through memory, which cannot be followed\n");
        _exit(99);
    }
    return (void *)syscall(SYS_mmap, at, length, protection, flags, fd, offset);
}
void *mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset) { return map_it(at, length, protection, flags, fd, offset); }
void *mmap64(void *at, size_t length, int protection, int flags, int fd, off64_t offset) { return map_it(at, length, protection, flags, fd, offset); }

/* ---- syncing ---- */

static int sync_it(int fd, int call) {
    struct stat stat;
    const char *name = tracked(fd, &stat);
    static uint64_t syncs;
    uint64_t this;
    int error;
    if (!name) return (int)syscall(call, fd);
    pthread_mutex_lock(&lock);
    this = ++syncs;
    error = faulty(CLASS_SYNC, name, NULL);
    record(SYNC_BEGAN, stat.st_ino, this, 0, NULL, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    if (sync_us) usleep((unsigned)((this * 2654435761u >> 8) % sync_us));
    pthread_mutex_lock(&lock);
    /* What a lying disk answers is success; that it did nothing is for the record alone. */
    if (!(lie && strcmp(lie, name) == 0)) record(SYNC_ENDED, stat.st_ino, this, (uint64_t)error, NULL, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    if (error) { errno = error; return -1; }
    return 0;
}
int fsync(int fd) { return sync_it(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_it(fd, SYS_fdatasync); }
int sync_file_range(int fd, off64_t offset, off64_t count, unsigned flags) {
    struct stat stat;
    const char *name = tracked(fd, &stat);
    if (!name) return (int)syscall(SYS_sync_file_range, fd, offset, count, flags);
    pthread_mutex_lock(&lock);
    REFUSE(CLASS_SYNC, name);
    record(RANGE, stat.st_ino, 0, 0, NULL, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return 0;
}

/* ---- directories ---- */

static int rename_it(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
    char whole[PATH_MAX], other[PATH_MAX];
    const char *a = below(from_at, from, whole), *b = below(to_at, to, other);
    int done;
    if (!a || !b) return (int)syscall(SYS_renameat2, from_at, from, to_at, to, flags);
    pthread_mutex_lock(&lock);
    REFUSE(CLASS_META, base(b));
    done = (int)syscall(SYS_renameat2, from_at, from, to_at, to, flags);
    if (done == 0) {
        struct stat stat;
        record(RENAMED, 0, 0, 0, a, strlen(a), b, strlen(b));
        if (fstatat(to_at, to, &stat, AT_SYMLINK_NOFOLLOW) == 0) remember(stat.st_ino, b);
    }
    pthread_mutex_unlock(&lock);
    return done;
}
int rename(const char *from, const char *to) { return rename_it(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int a, const char *from, int b, const char *to) { return rename_it(a, from, b, to, 0); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) { return rename_it(a, from, b, to, flags); }

static int unlink_it(int at, const char *path, int flags) {
    char whole[PATH_MAX];
    const char *name = below(at, path, whole);
    int done;
    if (!name) return (int)syscall(SYS_unlinkat, at, path, flags);
    pthread_mutex_lock(&lock);
    REFUSE(CLASS_META, base(name));
    done = (int)syscall(SYS_unlinkat, at, path, flags);
    if (done == 0) record(flags & AT_REMOVEDIR ? REMOVED_DIRECTORY : UNLINKED, 0, 0, 0, name, strlen(name), NULL, 0);
    pthread_mutex_unlock(&lock);
    return done;
}
int unlink(const char *path) { return unlink_it(AT_FDCWD, path, 0); }
int unlinkat(int at, const char *path, int flags) { return unlink_it(at, path, flags); }
int rmdir(const char *path) { return unlink_it(AT_FDCWD, path, AT_REMOVEDIR); }

static int mkdir_it(int at, const char *path, mode_t mode) {
    char whole[PATH_MAX];
    const char *name = below(at, path, whole);
    struct stat stat;
    int done;
    if (!name) return (int)syscall(SYS_mkdirat, at, path, mode);
    pthread_mutex_lock(&lock);
    if (fstatat(at, path, &stat, 0) != 0) REFUSE(CLASS_META, base(name));
    done = (int)syscall(SYS_mkdirat, at, path, mode);
    if (done == 0 && fstatat(at, path, &stat, 0) == 0) {
        remember(stat.st_ino, name);
        record(MADE_DIRECTORY, stat.st_ino, 0, 0, name, strlen(name), NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    return done;
}
int mkdir(const char *path, mode_t mode) { return mkdir_it(AT_FDCWD, path, mode); }
int mkdirat(int at, const char *path, mode_t mode) { return mkdir_it(at, path, mode); }

int linkat(int a, const char *from, int b, const char *to, int flags) {
    char whole[PATH_MAX], other[PATH_MAX];
    const char *old = below(a, from, whole), *new = below(b, to, other);
    int done;
    if (!old || !new) return (int)syscall(SYS_linkat, a, from, b, to, flags);
    pthread_mutex_lock(&lock);
    REFUSE(CLASS_META, base(new));
    done = (int)syscall(SYS_linkat, a, from, b, to, flags);
    if (done == 0) record(LINKED, 0, 0, 0, old, strlen(old), new, strlen(new));
    pthread_mutex_unlock(&lock);
    return done;
}
int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }
