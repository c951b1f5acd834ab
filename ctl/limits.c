#include "limits.h"

#include "client.h"
#include "table.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEPTH_MOST 16

/* The nodes in the order in which they are drawn. */
struct tree {
	json_t **nodes; /* by parent's id, then name and key */
	size_t count;
	struct table table;
};

static const char *
text(const json_t *object, const char *name)
{
	return json_string_value(json_object_get(object, name));
}

static const char *
parent_of(const json_t *node)
{
	const char *parent = text(node, "parent");
	return parent ? parent : "";
}

static int
compare(const void *a, const void *b)
{
	const json_t *one = *(json_t *const *)a, *other = *(json_t *const *)b;
	int order = strcmp(parent_of(one), parent_of(other));
	if (!order)
		order = strcmp(text(one, "name"), text(other, "name"));
	return order ? order : strcmp(text(one, "key"), text(other, "key"));
}

/* "▇▇▇▁▁": how full a bucket is. */
static const char *
bar(const json_t *direction)
{
	double burst = json_number_value(json_object_get(direction, "burst"));
	double level = json_number_value(json_object_get(direction, "level"));
	int full = burst > 0 && level > 0 ? (int)(level / burst * 5 + 0.5) : 0;
	static const char *const bars[] = { "▁▁▁▁▁", "▇▁▁▁▁", "▇▇▁▁▁", "▇▇▇▁▁", "▇▇▇▇▁", "▇▇▇▇▇" };

	if (json_number_value(json_object_get(direction, "rate")) <= 0)
		return " ";
	return level < 0 ? "debt" : bars[full > 5 ? 5 : full];
}

static const char *
rate(const json_t *direction)
{
	double bytes = json_number_value(json_object_get(direction, "rate"));
	return bytes > 0 ? table_rate(bytes) : "-";
}

static json_int_t
whole(const json_t *object, const char *name)
{
	return json_integer_value(json_object_get(object, name));
}

static void
add_node(struct tree *tree, const json_t *node, const char *before)
{
	const json_t *up = json_object_get(node, "up"), *down = json_object_get(node, "down");
	const char *key = text(node, "key");
	const char *cells[] = {
		table_text("%s%s%s%s", before, text(node, "name"), *key ? " " : "", key),
		rate(up),
		bar(up),
		table_bytes(json_number_value(json_object_get(up, "total"))),
		table_count(whole(up, "waiting")),
		rate(down),
		bar(down),
		table_bytes(json_number_value(json_object_get(down, "total"))),
		table_count(whole(down, "waiting")),
		table_count(whole(down, "members")),
	};
	table_add(&tree->table, cells);
}

/* The first node below `parent`, by bisection. */
static size_t
find_children(const struct tree *tree, const char *parent)
{
	size_t low = 0, high = tree->count;
	while (low < high) {
		size_t middle = (low + high) / 2;
		if (strcmp(parent_of(tree->nodes[middle]), parent) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static void
add_children(struct tree *tree, const char *parent, const char *before, int depth)
{
	char branch[128], below[128];

	for (size_t i = find_children(tree, parent);
	     i < tree->count && !strcmp(parent_of(tree->nodes[i]), parent); i++) {
		bool is_last =
			i + 1 == tree->count || strcmp(parent_of(tree->nodes[i + 1]), parent) != 0;
		bool is_root = !*parent;
		snprintf(branch, sizeof(branch), "%s%s", before,
			 is_root   ? ""
			 : is_last ? "└ "
				   : "├ ");
		snprintf(below, sizeof(below), "%s%s", before,
			 is_root   ? ""
			 : is_last ? "  "
				   : "│ ");
		add_node(tree, tree->nodes[i], branch);
		if (depth < DEPTH_MOST)
			add_children(tree, text(tree->nodes[i], "id"), below, depth + 1);
	}
}

static void
draw(const json_t *list, bool as_tree)
{
	static const char *const titles[] = { "LIMIT",    ">UP",     "?LEVEL", "?>TOTAL",
					      ">WAITING", ">DOWN",   "?LEVEL", "?>TOTAL",
					      ">WAITING", "?>FLOWS", NULL };
	struct tree tree = { .count = json_array_size(list) };

	tree.nodes = calloc(tree.count ? tree.count : 1, sizeof(*tree.nodes));
	if (!tree.nodes)
		client_fail("no memory");
	for (size_t i = 0; i < tree.count; i++)
		tree.nodes[i] = json_array_get(list, i);
	qsort(tree.nodes, tree.count, sizeof(*tree.nodes), compare);
	table_begin(&tree.table, titles);
	if (as_tree)
		add_children(&tree, "", "", 0);
	for (size_t i = 0; !as_tree && i < tree.count; i++)
		add_node(&tree, tree.nodes[i], "");
	table_print(&tree.table, table_width());
	free(tree.nodes);
}

void
limits_view(bool json, const char *name)
{
	char path[512] = "/v1/limits";

	if (name)
		snprintf(path, sizeof(path), "/v1/limits?name=%.400s", client_escape(name));
	json_t *all = client_get(path);
	if (json) {
		json_dumpf(all, stdout, JSON_INDENT(2));
		putchar('\n');
	} else if (!json_array_size(json_object_get(all, "limits"))) {
		puts(name ? "nobody is there: it has a node for each key, while it is used and "
			    "until it is full again"
			  : "no limits, or none that anybody uses: one with a per has a node for "
			    "each key");
	} else {
		draw(json_object_get(all, "limits"), !name);
	}
	json_decref(all);
}

/* Sends a change to NAME[@KEY]; takes the body. */
static void
change(const char *name, json_t *body)
{
	char path[512], *copy = strdup(name);
	if (!copy)
		client_fail("no memory");
	char *key = strchr(copy, '@');

	if (key) {
		*key++ = '\0';
		json_object_set_new(body, "key", json_string(key));
	}
	snprintf(path, sizeof(path), "/v1/limits/%.400s", client_escape(copy));
	free(copy);
	client_post(path, body);
}

void
limits_tune(const char *name, char *const *words)
{
	json_t *body = json_object();

	for (; *words; words++) {
		const char *sign = strchr(*words, '=');
		char word[32];
		size_t length = sign ? (size_t)(sign - *words) : 0;
		if (!length || length >= sizeof(word))
			client_fail(
				"\"%s\" is no new value; write rate=10MB/s, up=, down= or burst=",
				*words);
		memcpy(word, *words, length);
		word[length] = '\0';
		if (strcmp(word, "rate") != 0 && strcmp(word, "up") != 0 &&
		    strcmp(word, "down") != 0 && strcmp(word, "burst") != 0)
			client_fail("a limit has no %s; write rate=10MB/s, up=, down= or burst=",
				    word);
		json_object_set_new(body, word, json_string(sign + 1));
	}
	change(name, body);
}

void
limits_adjust(const char *verb, const char *name, const char *amount, const char *direction)
{
	json_t *body = json_pack("{s:s}", verb, amount);
	if (direction)
		json_object_set_new(body, "direction", json_string(direction));
	change(name, body);
}

void
limits_reset(const char *name)
{
	change(name, json_pack("{s:b}", "reset", 1));
}
