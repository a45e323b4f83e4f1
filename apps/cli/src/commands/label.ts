// `muster tag …`, `muster pool …`, `muster zone …`: three kinds of label, the same commands for each.
import { type LabelEntry, type LabelKind, pools, tags, zones } from '@muster/shared/contract/labels'
import type { Command } from 'commander'
import { type Cli, examples, type Fill, formatOf } from '../cli.ts'
import { connect } from '../connection.ts'
import { attempt } from '../exit-codes.ts'
import { remarkCoverage, type Shape, showList, showOne } from '../output/show.ts'
import { checked } from '../schema-options.ts'

const callsOf = { tag: tags, pool: pools, zone: zones } as const
const groupOf = { tag: 'tags', pool: 'pools', zone: 'zones' } as const
const anExample = { tag: 'gpu', pool: 'web', zone: 'hall-2' } as const

/** Fills `muster tag`, `muster pool` or `muster zone`. */
export function fillLabel(kind: LabelKind): Fill {
  return (command, cli) => {
    examples(command, [`${kind} list`, `${kind} create ${anExample[kind]}`])
    addList(command, cli, kind)
    addCreate(command, cli, kind)
    addDelete(command, cli, kind)
  }
}

const shapeOf = (kind: LabelKind): Shape<LabelEntry> => ({
  columns: [
    { title: 'NAME', text: ({ name }) => name },
    { title: 'MACHINES', text: ({ machines }) => String(machines), align: 'right' },
    { title: 'READY', text: ({ ready }) => String(ready), align: 'right' },
    { title: 'DESCRIPTION', text: ({ description }) => description, least: 10 },
  ],
  name: ({ name }) => name,
  none: `There are no ${kind}s.`,
})

function addList(parent: Command, cli: Cli, kind: LabelKind): void {
  const command = parent.command('list').alias('ls').summary(`list ${kind}s`)
  command.description(`List ${kind}s. ${callsOf[kind].list.description}`)
  examples(command, [`${kind} list`, `${kind} list -o name`])
  command.action(async () => {
    const { client } = await connect(cli, command)
    showList(cli, formatOf(command), await attempt(`list ${kind}s`, client[groupOf[kind]].list({})), shapeOf(kind))
  })
}

function addCreate(parent: Command, cli: Cli, kind: LabelKind): void {
  const command = parent.command('create').summary(`create a ${kind}, or describe it anew`).argument('<name>', `name of the ${kind}`)
  command
    .description(`${callsOf[kind].put.summary}. What exists gets the new description.`)
    .option('--description <text>', 'what it is for')
  examples(command, [`${kind} create ${anExample[kind]} --description "asked for by the data team"`])
  command.action(async (name: string, options: { description?: string }) => {
    const input = checked(callsOf[kind].put, { name, ...options })
    const { client } = await connect(cli, command)
    const made = await attempt(`create ${kind} ${name}`, client[groupOf[kind]].put(input))
    showOne(cli, formatOf(command), made, { name: one => one.name, text: one => `${kind} ${one.name} created\n` })
    if (formatOf(command) !== 'json') remarkCoverage(cli, made.coverage)
  })
}

function addDelete(parent: Command, cli: Cli, kind: LabelKind): void {
  const command = parent.command('delete').alias('rm').summary(`forget a ${kind}`).argument('<name>', `name of the ${kind}`)
  command.description(`${callsOf[kind].delete.summary}.`)
  examples(command, [`${kind} delete ${anExample[kind]}`])
  command.action(async (name: string) => {
    const input = checked(callsOf[kind].delete, { name })
    const { client } = await connect(cli, command)
    const gone = await attempt(`delete ${kind} ${name}`, client[groupOf[kind]].delete(input))
    showOne(cli, formatOf(command), gone, { name: one => one.name, text: one => `${kind} ${one.name} deleted\n` })
    if (formatOf(command) !== 'json') remarkCoverage(cli, gone.coverage)
  })
}
