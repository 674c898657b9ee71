/* A disk that is full at a moment that is chosen, or a process that is killed at it: preloaded, and told by disk_begin.
 *
 * A moment is a call of write, writev, pwrite, ftruncate, fsync, fdatasync, rename or mkdir on a file or folder under
 * one folder; they are counted from 1.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, COUNT, FULL_ONCE, FULL, KILL_BEFORE, KILL_AFTER };

static char folder[PATH_MAX];
static char failed[PATH_MAX + 32];
static volatile long calls, chosen;
static volatile int mode, is_full;

void disk_begin(const char *under, long at, int how) {
    snprintf(folder, sizeof folder, "%s", under);
    failed[0] = 0;
    calls = 0;
    chosen = at;
    is_full = 0;
    mode = how;
}

long disk_calls(void) { return calls; }

const char *disk_failed(void) { return failed; }

static int is_under(const char *path) {
    size_t length = strlen(folder);
    return strncmp(path, folder, length) == 0 && (path[length] == '/' || path[length] == 0);
}

static const char *of_descriptor(int descriptor, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    return path;
}

static const char *of_name(const char *name, char *path) {
    char parent[PATH_MAX];
    snprintf(parent, sizeof parent, "%s", name);
    char *last = strrchr(parent, '/');
    if (last)
        *last = 0;
    const char *place = !last ? "." : last == parent ? "/" : parent;
    if (!realpath(place, path))
        path[0] = 0;
    size_t length = strlen(path);
    snprintf(path + length, PATH_MAX - length, "/%s", last ? last + 1 : name);
    return path;
}

enum { GO_ON, REFUSE, HALF };

/* What is to become of a call: needs_room says whether a disk that stays full refuses it. */
static int moment(const char *what, const char *path, int needs_room) {
    if (mode == OFF || !is_under(path))
        return GO_ON;
    long number = __sync_add_and_fetch(&calls, 1);
    if (is_full && needs_room) {
        errno = ENOSPC;
        return REFUSE;
    }
    if (number != chosen || mode == COUNT)
        return GO_ON;
    snprintf(failed, sizeof failed, "%s %s", what, path);
    if (mode == KILL_BEFORE || mode == KILL_AFTER)
        return HALF;
    is_full = mode == FULL;
    if (is_full && strcmp(what, "write") == 0)
        return HALF;
    errno = ENOSPC;
    return REFUSE;
}

static void die(void) {
    if (mode == KILL_BEFORE || mode == KILL_AFTER)
        kill(getpid(), SIGKILL);
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

/* `call` is the real one; a kill comes before it or after it, of a write after its first half. */
#define CHANGES(what, path, needs_room, call)                                                                          \
    char buffer[PATH_MAX * 2];                                                                                         \
    int fate = mode == OFF ? GO_ON : moment(what, path, needs_room);                                                   \
    if (fate == REFUSE)                                                                                                \
        return -1;                                                                                                     \
    if (fate == HALF && mode == KILL_BEFORE)                                                                           \
        die();                                                                                                         \
    __typeof__(call) result = call;                                                                                    \
    if (fate == HALF)                                                                                                  \
        die();                                                                                                         \
    return result;

#define HALF_OF(size) (fate == HALF && (size) > 1 ? (size) / 2 : (size))

ssize_t write(int descriptor, const void *content, size_t size) {
    REAL(write);
    CHANGES("write", of_descriptor(descriptor, buffer), 1, real(descriptor, content, HALF_OF(size)))
}

ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    REAL(writev);
    CHANGES("writev", of_descriptor(descriptor, buffer), 1, real(descriptor, parts, count))
}

ssize_t pwrite(int descriptor, const void *content, size_t size, off_t at) {
    REAL(pwrite);
    CHANGES("pwrite", of_descriptor(descriptor, buffer), 1, real(descriptor, content, size, at))
}

ssize_t pwrite64(int descriptor, const void *content, size_t size, off64_t at) {
    REAL(pwrite64);
    CHANGES("pwrite", of_descriptor(descriptor, buffer), 1, real(descriptor, content, size, at))
}

int ftruncate(int descriptor, off_t size) {
    REAL(ftruncate);
    CHANGES("ftruncate", of_descriptor(descriptor, buffer), 0, real(descriptor, size))
}

int ftruncate64(int descriptor, off64_t size) {
    REAL(ftruncate64);
    CHANGES("ftruncate", of_descriptor(descriptor, buffer), 0, real(descriptor, size))
}

int fsync(int descriptor) {
    REAL(fsync);
    CHANGES("fsync", of_descriptor(descriptor, buffer), 1, real(descriptor))
}

int fdatasync(int descriptor) {
    REAL(fdatasync);
    CHANGES("fdatasync", of_descriptor(descriptor, buffer), 1, real(descriptor))
}

int rename(const char *from, const char *to) {
    REAL(rename);
    CHANGES("rename", of_name(to, buffer), 0, real(from, to))
}

int mkdir(const char *name, mode_t rights) {
    REAL(mkdir);
    CHANGES("mkdir", of_name(name, buffer), 1, real(name, rights))
}
