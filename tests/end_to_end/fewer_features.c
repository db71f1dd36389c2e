/* A preload library: below the directory $FEWER_FEATURES there are no links, no flock and no fsync of directories. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Whether a path is below $FEWER_FEATURES; relative paths never are. */
static int below(const char *path) {
    const char *root = getenv("FEWER_FEATURES");
    return root && path && strncmp(path, root, strlen(root)) == 0;
}
static int fd_below(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return below(path);
}
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
int symlink(const char *target, const char *path) {
    if (below(path)) { errno = EPERM; return -1; }
    return REAL(symlink)(target, path);
}
int symlinkat(const char *target, int fd, const char *path) {
    if (below(path)) { errno = EPERM; return -1; }
    return REAL(symlinkat)(target, fd, path);
}
int link(const char *old, const char *path) {
    if (below(path)) { errno = EPERM; return -1; }
    return REAL(link)(old, path);
}
int linkat(int a, const char *old, int b, const char *path, int flags) {
    if (below(path)) { errno = EPERM; return -1; }
    return REAL(linkat)(a, old, b, path, flags);
}
int flock(int fd, int operation) {
    if (fd_below(fd)) { errno = ENOLCK; return -1; }
    return REAL(flock)(fd, operation);
}
int fsync(int fd) {
    struct stat status;
    if (fd_below(fd) && fstat(fd, &status) == 0 && S_ISDIR(status.st_mode)) { errno = EINVAL; return -1; }
    return REAL(fsync)(fd);
}
