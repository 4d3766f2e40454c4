// Preloaded into a node: its syncs fail, stall or are slow, while a file of that name is there.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int is_there(const char *name) {
    const char *dir = getenv("FAULTY_DISK");
    char path[4096];
    if (!dir) return 0;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return access(path, F_OK) == 0;
}

// How long a sync takes: what the file `slow` says.
static long slow_ms(void) {
    const char *dir = getenv("FAULTY_DISK");
    char path[4096];
    long ms = 0;
    if (!dir) return 0;
    snprintf(path, sizeof path, "%s/slow", dir);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    if (fscanf(file, "%ld", &ms) != 1) ms = 0;
    fclose(file);
    return ms;
}

// Of the log and the rows.
int fdatasync(int fd) {
    static int (*real)(int);
    while (is_there("stall")) {
        struct timespec moment = {0, 20000000};
        nanosleep(&moment, 0);
    }
    long ms = slow_ms();
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    if (ms > 0) nanosleep(&time, 0);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    return real(fd);
}

// Of the engine's own thread, twice a second: the node defines fsync itself, over this.
long syscall(long number, ...) {
    static long (*real)(long, ...);
    va_list args;
    va_start(args, number);
    long a = va_arg(args, long), b = va_arg(args, long), c = va_arg(args, long);
    long d = va_arg(args, long), e = va_arg(args, long), f = va_arg(args, long);
    va_end(args);
    if (number == SYS_fsync && is_there("fail")) {
        errno = EIO;
        return -1;
    }
    if (!real) real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    return real(number, a, b, c, d, e, f);
}
