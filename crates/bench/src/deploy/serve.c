// The measured service: answers each request with its release, and with how long it took from its first act until it listened.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void end(int signal) {
    (void)signal;
    _exit(0);
}

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    return (long long)time.tv_sec * 1000000000 + time.tv_nsec;
}

int main(void) {
    long long first = now();
    signal(SIGTERM, end);
    signal(SIGPIPE, SIG_IGN);
    const char *port = getenv("PORT"), *release = getenv("RELEASE");
    int on = 1, server = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(port ? port : "10000")), .sin_addr.s_addr = INADDR_ANY};
    if (bind(server, (struct sockaddr *)&at, sizeof at) || listen(server, 128)) {
        perror("listen");
        return 1;
    }
    char body[128], answer[256], request[4096];
    int length = snprintf(body, sizeof body, "release=%s start=%lld\n", release ? release : "", now() - first);
    snprintf(answer, sizeof answer, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", length, body);
    for (;;) {
        int client = accept(server, 0, 0);
        if (client < 0) continue;
        if (read(client, request, sizeof request) > 0 && write(client, answer, strlen(answer)) < 0) perror("write");
        close(client);
    }
}
