// The measured service: answers HTTP requests with its release, any other line with itself, a process for each connection. Told to end, it takes no
// more connections, and ends with the last one that is open.
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile sig_atomic_t over;

static void end(int signal) {
    (void)signal;
    over = 1;
}

static void talk(int client) {
    FILE *in = fdopen(client, "r"), *out = fdopen(dup(client), "w");
    const char *release = getenv("RELEASE");
    char line[4096];
    int http = 0;
    while (in && out && fgets(line, sizeof line, in)) {
        if (!strncmp(line, "GET ", 4)) {
            http = 1;
        } else if (!http) {
            fputs(line, out);
            fflush(out);
        } else if (!strcmp(line, "\r\n")) {
            fprintf(out, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n%s", strlen(release), release);
            fflush(out);
            http = 0;
        }
    }
    _exit(0);
}

int main(void) {
    struct sigaction on_end = {.sa_handler = end}, reap = {.sa_handler = SIG_DFL, .sa_flags = SA_NOCLDWAIT};
    sigaction(SIGTERM, &on_end, 0);
    sigaction(SIGCHLD, &reap, 0);
    signal(SIGPIPE, SIG_IGN);
    const char *port = getenv("PORT");
    int on = 1, server = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(port ? port : "10000")), .sin_addr.s_addr = INADDR_ANY};
    if (bind(server, (struct sockaddr *)&at, sizeof at) || listen(server, 128)) {
        perror("listen");
        return 1;
    }
    while (!over) {
        int client = accept(server, 0, 0);
        if (client < 0) continue;
        if (!fork()) {
            signal(SIGTERM, SIG_IGN);
            close(server);
            talk(client);
        }
        close(client);
    }
    close(server);
    while (wait(0) > 0 || errno == EINTR) {
    }
    return 0;
}
