// The measured program: says what time it is as its first act. With the argument `idle` it then waits for ever.
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    printf("first=%lld%09ld\n", (long long)now.tv_sec, now.tv_nsec);
    fflush(stdout);
    while (argc > 1 && strcmp(argv[1], "idle") == 0) {
        pause();
    }
    return 0;
}
