/* A preload library: sends SIGTERM to the process itself immediately before it waits for the first time. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void terminate_once(void) {
    static int done;
    if (!done++) kill(getpid(), SIGTERM);
}
pid_t waitpid(pid_t pid, int *status, int options) {
    if (!(options & WNOHANG)) terminate_once();
    return REAL(waitpid)(pid, status, options);
}
int sigwait(const sigset_t *signals, int *received) {
    terminate_once();
    return REAL(sigwait)(signals, received);
}
