/* Preloaded into a node's process: its wall clock is off, or too fast, or too slow, as a file says that is mapped into memory.
 *
 * Shifted: CLOCK_REALTIME and CLOCK_REALTIME_COARSE of clock_gettime, gettimeofday, time, timespec_get. Not shifted: the
 * monotonic clocks, timers, what the kernel writes into files. Who waits on a condition until some wall clock time waits as long as
 * by his own clock at the moment when he begins; a jump meanwhile does not wake him. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

/* Written by the harness; the number is odd while it writes. */
struct shift {
  volatile uint64_t number;
  volatile int64_t offset_ns;
  volatile int64_t since_ns;         /* by the monotonic clock */
  volatile int64_t extra_per_million; /* nanoseconds that are added per million since then */
};

static const struct shift *shift;
static int (*real_clock_gettime)(clockid_t, struct timespec *);
static int (*real_cond_timedwait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
static int (*real_cond_clockwait)(pthread_cond_t *, pthread_mutex_t *, clockid_t, const struct timespec *);
static int (*real_cnd_timedwait)(cnd_t *, mtx_t *, const struct timespec *);
static int (*real_sem_timedwait)(sem_t *, const struct timespec *);

static void *find(const char *name) {
  void *found = dlvsym(RTLD_NEXT, name, "GLIBC_2.3.2"); /* older ones have the same name */
  return found ? found : dlsym(RTLD_NEXT, name);
}

__attribute__((constructor)) static void begin(void) {
  if (real_clock_gettime) return;
  real_cond_timedwait = (int (*)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *))find("pthread_cond_timedwait");
  real_cond_clockwait = (int (*)(pthread_cond_t *, pthread_mutex_t *, clockid_t, const struct timespec *))find("pthread_cond_clockwait");
  real_cnd_timedwait = (int (*)(cnd_t *, mtx_t *, const struct timespec *))find("cnd_timedwait");
  real_sem_timedwait = (int (*)(sem_t *, const struct timespec *))find("sem_timedwait");
  const char *path = getenv("TIDEMILL_CLOCK");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file >= 0) {
    void *mapped = mmap(NULL, sizeof *shift, PROT_READ, MAP_SHARED, file, 0);
    if (mapped != MAP_FAILED) shift = mapped;
    close(file);
  }
  real_clock_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
}

static int64_t ns_of(const struct timespec *t) { return (int64_t)t->tv_sec * 1000000000 + t->tv_nsec; }

static struct timespec time_of(int64_t ns) {
  struct timespec t = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
  return t;
}

/* By how much the wall clock is off. */
static int64_t off(void) {
  struct timespec mono;
  uint64_t number;
  int64_t ns;
  if (!shift || real_clock_gettime(CLOCK_MONOTONIC, &mono)) return 0;
  do {
    while ((number = __atomic_load_n(&shift->number, __ATOMIC_ACQUIRE)) & 1) {}
    ns = shift->offset_ns + (int64_t)((__int128)(ns_of(&mono) - shift->since_ns) * shift->extra_per_million / 1000000);
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
  } while (number != __atomic_load_n(&shift->number, __ATOMIC_RELAXED));
  return ns;
}

int clock_gettime(clockid_t clock, struct timespec *to) {
  if (!real_clock_gettime) begin();
  int failed = real_clock_gettime(clock, to);
  if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) *to = time_of(ns_of(to) + off());
  return failed;
}

int gettimeofday(struct timeval *restrict to, void *restrict zone) {
  struct timespec now;
  (void)zone;
  if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
  *to = (struct timeval){.tv_sec = now.tv_sec, .tv_usec = now.tv_nsec / 1000};
  return 0;
}

time_t time(time_t *to) {
  struct timespec now;
  if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
  if (to) *to = now.tv_sec;
  return now.tv_sec;
}

int timespec_get(struct timespec *to, int base) {
  if (base != TIME_UTC || clock_gettime(CLOCK_REALTIME, to)) return 0;
  return base;
}

/* When that is by the kernel's clock. Times of the monotonic clock, which some conditions have, are far too small to be of the wall's. */
static struct timespec kernel_time(const struct timespec *until) {
  if (!real_clock_gettime) begin();
  return until->tv_sec < 500000000 ? *until : time_of(ns_of(until) - off());
}

int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex, const struct timespec *restrict until) {
  struct timespec when = kernel_time(until);
  return real_cond_timedwait(cond, mutex, &when);
}

int pthread_cond_clockwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex, clockid_t clock,
                           const struct timespec *restrict until) {
  struct timespec when = kernel_time(until);
  return real_cond_clockwait(cond, mutex, clock, clock == CLOCK_REALTIME ? &when : until);
}

int cnd_timedwait(cnd_t *restrict cond, mtx_t *restrict mutex, const struct timespec *restrict until) {
  struct timespec when = kernel_time(until);
  return real_cnd_timedwait(cond, mutex, &when);
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until) {
  struct timespec when = kernel_time(until);
  return real_sem_timedwait(semaphore, &when);
}
