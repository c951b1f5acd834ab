#include "top.h"

#include "client.h"
#include "table.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

/* Lines that are no connection: heading, keys, titles. */
#define OTHER_LINES 4

enum key { KEY_NONE, KEY_UP = 1000, KEY_DOWN };

static struct termios before;
static volatile sig_atomic_t stopped;

struct screen {
	struct view_filter *filter;
	json_t *connections;
	size_t marked; /* its place in the list */
	char said[256];
};

static void
on_signal(int number)
{
	(void)number;
	stopped = 1;
}

static void
leave_screen(void)
{
	if (!client_leave)
		return;
	client_leave = NULL;
	fputs("\033[?25h\033[?1049l", stdout);
	fflush(stdout);
	tcsetattr(STDIN_FILENO, TCSANOW, &before);
}

static void
enter_screen(void)
{
	struct sigaction action = { .sa_handler = on_signal };
	struct termios raw;

	if (tcgetattr(STDIN_FILENO, &before) < 0)
		client_fail("top: standard input is no terminal");
	raw = before;
	raw.c_lflag &= (tcflag_t) ~(ICANON | ECHO);
	raw.c_cc[VMIN] = 0;
	raw.c_cc[VTIME] = 0;
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	tcsetattr(STDIN_FILENO, TCSANOW, &raw);
	client_leave = leave_screen;
	atexit(leave_screen);
	fputs("\033[?1049h\033[?25l", stdout);
}

static size_t
height(void)
{
	struct winsize size;
	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) < 0 || size.ws_row <= OTHER_LINES)
		return 20;
	return size.ws_row - OTHER_LINES;
}

static size_t
count_of(const struct screen *screen)
{
	return json_array_size(json_object_get(screen->connections, "connections"));
}

static json_int_t
marked_id(const struct screen *screen)
{
	const json_t *list = json_object_get(screen->connections, "connections");
	return json_integer_value(json_object_get(json_array_get(list, screen->marked), "id"));
}

/* As much of it as fits into a line behind so many columns, so that none wraps and moves the others. */
static const char *
fitting(const char *text, size_t used)
{
	size_t width = table_width();
	size_t room = width > used ? width - used : 1;
	return width ? table_text("%.*s", (int)table_cut(text, room), text) : text;
}

static void
draw(struct screen *screen)
{
	size_t count = count_of(screen);

	if (screen->marked >= count)
		screen->marked = count ? count - 1 : 0;
	printf("\033[H\033[J%spenstock%s  %s\n", table_style("\033[1m"), table_style("\033[0m"),
	       fitting(table_text("%zu shown, by %s%s%s   %s", count, screen->filter->sort,
				  screen->filter->tunnel ? ", of " : "",
				  screen->filter->tunnel ? screen->filter->tunnel : "",
				  screen->said),
		       strlen("penstock  ")));
	printf("%s%s%s\n\n", table_style("\033[2m"),
	       fitting("k kill  q quit  arrows choose  sort: r rate, b bytes, a age, i idle, w "
		       "wait",
		       0),
	       table_style("\033[0m"));
	view_list(screen->connections, height(), marked_id(screen));
	fflush(stdout);
}

/* Waits for a key, at most so long. */
static int
read_key(int wait_ms)
{
	struct pollfd input = { .fd = STDIN_FILENO, .events = POLLIN };
	char bytes[8];

	if (poll(&input, 1, wait_ms) <= 0)
		return KEY_NONE;
	ssize_t count = read(STDIN_FILENO, bytes, sizeof(bytes));
	if (count <= 0)
		stopped = 1; /* the terminal is gone */
	if (count == 3 && !memcmp(bytes, "\033[A", 3))
		return KEY_UP;
	if (count == 3 && !memcmp(bytes, "\033[B", 3))
		return KEY_DOWN;
	return count > 0 ? bytes[0] : KEY_NONE;
}

static void
kill_marked(struct screen *screen)
{
	char path[64];
	json_int_t id = marked_id(screen);

	if (!id)
		return;
	snprintf(screen->said, sizeof(screen->said), "kill connection %lld? y or n", (long long)id);
	draw(screen);
	int key = KEY_NONE;
	while (!stopped && key == KEY_NONE)
		key = read_key(1000);
	screen->said[0] = '\0';
	if (key != 'y')
		return;
	snprintf(path, sizeof(path), "/v1/connections/%lld/kill", (long long)id);
	char *refusal = client_try(path, NULL);
	snprintf(screen->said, sizeof(screen->said), "%s",
		 refusal ? refusal : table_text("connection %lld is killed", (long long)id));
	free(refusal);
}

/* Returns whether the list is to be fetched anew. */
static bool
obey(struct screen *screen, int key)
{
	static const struct {
		int key;
		const char *sort;
	} sorts[] = {
		{ 'r', "rate" }, { 'b', "bytes" }, { 'a', "age" }, { 'i', "idle" }, { 'w', "wait" }
	};

	for (size_t i = 0; i < sizeof(sorts) / sizeof(sorts[0]); i++)
		if (key == sorts[i].key) {
			screen->filter->sort = sorts[i].sort;
			return true;
		}
	switch (key) {
	case 'q':
		stopped = 1;
		break;
	case 'k':
		kill_marked(screen);
		return true;
	case KEY_UP:
		screen->marked -= screen->marked > 0;
		break;
	case KEY_DOWN:
		screen->marked++;
		break;
	default:
		break;
	}
	return false;
}

static void
print_rounds(struct view_filter *filter, double seconds, unsigned int rounds)
{
	for (unsigned int i = 0; i < rounds && !ferror(stdout); i++) {
		json_t *connections = view_fetch(filter);
		view_list(connections, 0, 0);
		json_decref(connections);
		fflush(stdout);
		if (i + 1 < rounds)
			poll(NULL, 0, (int)(seconds * 1000));
	}
}

void
top_run(struct view_filter *filter, double seconds, unsigned int rounds)
{
	struct screen screen = { .filter = filter };

	if (!table_is_terminal()) {
		print_rounds(filter, seconds, rounds ? rounds : 1);
		return;
	}
	enter_screen();
	for (unsigned int round = 0; !stopped && (!rounds || round < rounds); round++) {
		filter->limit = (unsigned int)(height() < 500 ? height() : 500);
		screen.connections = view_fetch(filter);
		draw(&screen);
		int key;
		while (!stopped && (key = read_key((int)(seconds * 1000))) != KEY_NONE) {
			if (obey(&screen, key))
				break;
			draw(&screen);
		}
		json_decref(screen.connections);
		screen.connections = NULL;
	}
}
