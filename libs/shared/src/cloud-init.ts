// What a deployment and cloud-init, the program that carries out an installed system's first boot, say to each other.
import { z } from 'zod'

/** How the installed system finds its metadata: a seed directory over HTTP, or the metadata service of MAAS (for images made for that). */
export const dataSources = ['nocloud', 'maas'] as const
export type DataSource = (typeof dataSources)[number]

/** What cloud-init's MAAS data source is configured with. The consumer's secret is empty there, always. */
export const metadataCredentials = z.object({ url: z.url(), consumerKey: z.string(), tokenKey: z.string(), tokenSecret: z.string() })
export type MetadataCredentials = z.output<typeof metadataCredentials>

/** As sent: with JSON's escapes it must fit into one message of the bus, which carries 1 MiB. */
export const userDataLimitBytes = 512 * 1024

export const userData = z
  .string()
  .refine(
    text => Buffer.byteLength(text) <= userDataLimitBytes,
    `is larger than ${userDataLimitBytes} bytes; compress it with gzip and send that as base64, or let it fetch the rest (#include)`,
  )
  .describe(`cloud-init's user-data as text, or any bytes (gzip, say) as base64; at most ${userDataLimitBytes / 1024} KiB as sent`)

/** Given to the deployed machine once, when it asks for it by name. */
export const oneTimeSecrets = z
  .record(
    z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/, 'is not a name of letters, digits, dots, dashes and underscores'),
    z.string().min(1).max(8192),
  )
  .refine(secrets => Object.keys(secrets).length <= 20, 'holds more than 20 secrets')
  .describe('secrets by name, each handed to the deployed machine once: POST to <secrets_url of its meta-data>/<name>')

/** A foreign program's text: cut rather than refused, and without the one character that PostgreSQL cannot store. */
const foreignText = (length: number) => z.string().transform(text => text.replaceAll('\0', '').slice(0, length))

/**
 * An event of the reporting webhook, as cloud-init and curtin post it. `name` is a path (`modules-final/config-ssh`); a stage's own has no slash.
 * Members not named here are theirs to add, and are not read.
 */
export const cloudInitReport = z.object({
  event_type: z.enum(['start', 'progress', 'finish']),
  origin: foreignText(40).default(''),
  name: foreignText(120),
  description: foreignText(200).default(''),
  result: z.enum(['SUCCESS', 'WARN', 'FAIL', 'FAILURE']).optional(),
  duration: z.number().optional(),
  /** Logs that came with it. Their contents are dropped; that they came is told. */
  files: z
    .array(z.object({ path: foreignText(200) }))
    .max(50)
    .optional(),
})
export type CloudInitReport = z.output<typeof cloudInitReport>

/** What is known of a deployment's first boot, from the reports of its cloud-init. */
export const firstBoot = z.object({
  /** The step last reported, and what it is. */
  step: z.string(),
  description: z.string(),
  /** Steps that failed; at most {@link mostFailures} are kept. */
  failures: z.array(z.string()),
  reportedAt: z.iso.datetime(),
  /** When its last stage was over. */
  endedAt: z.iso.datetime().nullable(),
})
export type FirstBoot = z.infer<typeof firstBoot>
export const mostFailures = 20
